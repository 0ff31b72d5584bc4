-- migrations/0003_numbers_and_plans.sql -- what counts only goes up, also where a rival writes it; and the plan of an
-- index's function lasts.
--
--   * Generations and sessions order what agents, gateways and callers are told. One that a rival sets back, or so far
--     ahead that counting on from it overflows, would be told to nobody, or to everybody for ever: it becomes the
--     next one (of a spec), or stays what it was (of what only an owner counts).
--   * An attachment is of a generation that there is.
--   * What was live of a tunnel, and its conditions, are its owner's to say.
--   * PostgreSQL plans a function in SQL anew for each statement that needs it, and the index of connectors' names
--     needs its own for every row of a tunnel that is written: half of what writing it takes. In PL/pgSQL its plan
--     lasts as long as the session.

-- The number that a rival wants, if it goes on from what was, and not too far; `otherwise` if not.
CREATE FUNCTION warren_counted(wanted bigint, was bigint, otherwise bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
  SELECT CASE WHEN wanted BETWEEN was AND was + 1000000 THEN wanted ELSE otherwise END
$$;

CREATE OR REPLACE FUNCTION warren_promise_attachment() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.tunnel_generation < 1 THEN
    RAISE EXCEPTION 'tunnel_generation is not positive' USING ERRCODE = 'check_violation';
  END IF;
  IF TG_OP = 'INSERT' OR NEW.rules IS DISTINCT FROM OLD.rules OR NEW.tunnel IS DISTINCT FROM OLD.tunnel
     OR NEW.attachment_generation IS DISTINCT FROM OLD.attachment_generation THEN
    NEW.attachment_generation := 9223372036854775807;
  END IF;
  RETURN NEW;
END $$;

CREATE OR REPLACE FUNCTION warren_promise_connector() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
  IF TG_OP = 'INSERT' THEN
    NEW.online := false;
    NEW.dialable := false;
    NEW.attached_generation := 0;
    NEW.generation := warren_counted(NEW.generation, 1, 1);
    NEW.session := warren_counted(NEW.session, 0, 0);
    NEW.addressing_generation := warren_counted(NEW.addressing_generation, 0, 0);
    NEW.attachment_generation := warren_counted(NEW.attachment_generation, 0, 0);
  ELSE
    NEW.online := NEW.online AND OLD.online;
    NEW.dialable := NEW.dialable AND OLD.dialable;
    NEW.attached_generation := least(NEW.attached_generation, OLD.attached_generation);
    NEW.generation := warren_counted(NEW.generation, OLD.generation, OLD.generation + 1);
    NEW.session := warren_counted(NEW.session, OLD.session, OLD.session);
    NEW.addressing_generation := warren_counted(NEW.addressing_generation, OLD.addressing_generation, OLD.addressing_generation);
    NEW.attachment_generation := warren_counted(NEW.attachment_generation, OLD.attachment_generation, OLD.attachment_generation);
  END IF;
  RETURN NEW;
END $$;

CREATE OR REPLACE FUNCTION warren_promise_tunnel() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
  IF TG_OP = 'INSERT' THEN
    NEW.observed_generation := 0;
    NEW.programmed_generation := 0;
    NEW.previous_generation := 0;
    NEW.previous_rules := '[]';
    NEW.conditions := '[]';
    NEW.generation := warren_counted(NEW.generation, 1, 1);
    RETURN NEW;
  END IF;
  NEW.generation := warren_counted(NEW.generation, OLD.generation, OLD.generation + 1);
  NEW.observed_generation := least(NEW.observed_generation, OLD.observed_generation);
  NEW.programmed_generation := least(NEW.programmed_generation, OLD.programmed_generation);
  NEW.previous_generation := OLD.previous_generation;
  NEW.previous_rules := OLD.previous_rules;
  NEW.conditions := OLD.conditions;
  IF NEW.hostnames IS DISTINCT FROM OLD.hostnames OR NEW.rules IS DISTINCT FROM OLD.rules
     OR NEW.enabled IS DISTINCT FROM OLD.enabled OR NEW.gateway_class IS DISTINCT FROM OLD.gateway_class THEN
    IF OLD.previous_generation = 0 AND OLD.programmed_generation = OLD.generation THEN
      NEW.previous_generation := OLD.generation;
      NEW.previous_rules := OLD.rules;
    END IF;
    NEW.retiring := NEW.retiring || ARRAY(
      SELECT each FROM unnest(OLD.retiring || warren_rule_connectors(OLD.rules)) AS each
      WHERE each <> ALL (NEW.retiring) GROUP BY each ORDER BY each);
  END IF;
  RETURN NEW;
END $$;

CREATE OR REPLACE FUNCTION warren_named_connectors(project text, rules jsonb, previous_rules jsonb) RETURNS text[]
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
  RETURN (
    SELECT coalesce(array_agg(DISTINCT $1 || '/' || (rule ->> 'connector')), '{}')
    FROM jsonb_array_elements($2 || $3) AS rule
    WHERE jsonb_typeof(rule) = 'object' AND rule ->> 'connector' IS NOT NULL);
END $$;
