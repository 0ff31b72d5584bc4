-- migrations/0002_rivals_promise_nothing.sql -- what a rival writes may take away, and never promises what only
-- an owner can know.
--
--   * An attachment that a rival inserts, or whose content it changes, is held by no agent: it gets the highest
--     number there is, which no agent ever acknowledges, until the connector's actor has dealt with it.
--   * A connector is neither online nor holds a set because a rival says so.
--   * A tunnel whose spec a rival changes keeps what was live (previous_generation, previous_rules) and who has to
--     let go of it (retiring), as if its owner had changed it: the owner may be asleep, and learns of the change
--     from the row alone.
--   * A claim names the tunnel that its uid means, and does not change hands: whoever loses it learns that from the
--     tombstone of a DELETE.
--
-- And warren_restored(), for whoever has put an older copy of the data back into the same cluster: nothing in it
-- says that it is one.

CREATE FUNCTION warren_rule_connectors(rules jsonb) RETURNS text[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
  SELECT coalesce(array_agg(DISTINCT rule ->> 'connector'), '{}')
  FROM jsonb_array_elements(rules) AS rule
  WHERE jsonb_typeof(rule) = 'object' AND rule ->> 'connector' IS NOT NULL
$$;

-- Runs before the marking triggers of level 1 (BEFORE triggers fire in the order of their names).
CREATE FUNCTION warren_promise_attachment() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'INSERT' OR NEW.rules IS DISTINCT FROM OLD.rules OR NEW.tunnel IS DISTINCT FROM OLD.tunnel
     OR NEW.attachment_generation IS DISTINCT FROM OLD.attachment_generation THEN
    NEW.attachment_generation := 9223372036854775807;
  END IF;
  RETURN NEW;
END $$;

CREATE FUNCTION warren_promise_connector() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'INSERT' THEN
    NEW.online := false;
    NEW.dialable := false;
    NEW.attached_generation := 0;
  ELSE
    NEW.online := NEW.online AND OLD.online;
    NEW.dialable := NEW.dialable AND OLD.dialable;
    NEW.attached_generation := least(NEW.attached_generation, OLD.attached_generation);
  END IF;
  RETURN NEW;
END $$;

CREATE FUNCTION warren_promise_tunnel() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
  IF TG_OP = 'INSERT' THEN
    NEW.observed_generation := 0;
    NEW.programmed_generation := 0;
    RETURN NEW;
  END IF;
  NEW.observed_generation := least(NEW.observed_generation, OLD.observed_generation);
  NEW.programmed_generation := least(NEW.programmed_generation, OLD.programmed_generation);
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

CREATE FUNCTION warren_promise_hostname_claim() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
  IF TG_OP = 'UPDATE' AND NEW.tunnel_uid IS DISTINCT FROM OLD.tunnel_uid THEN
    RAISE EXCEPTION 'a host name does not change hands: delete its claim and insert another'
      USING ERRCODE = 'restrict_violation';
  END IF;
  SELECT project, name INTO NEW.project, NEW.tunnel FROM tunnel WHERE uid = NEW.tunnel_uid;
  RETURN NEW;
END $$;

DO $$
DECLARE
  kind text;
BEGIN
  FOREACH kind IN ARRAY ARRAY['attachment', 'connector', 'tunnel', 'hostname_claim'] LOOP
    EXECUTE format($f$
      CREATE TRIGGER %1$s_promise BEFORE INSERT OR UPDATE ON %1$I FOR EACH ROW
        WHEN (current_setting('warren.writer', true) IS DISTINCT FROM 'on')
        EXECUTE FUNCTION warren_promise_%1$s()$f$, kind);
  END LOOP;
END $$;

-- What was marked before this migration and has not been adopted yet.
SET LOCAL warren.writer = 'on';
UPDATE attachment SET attachment_generation = 9223372036854775807 WHERE version = -1;

-- Begins another life of the database: for whoever has put an older copy of the data back where nothing shows it
-- (the same cluster on the same timeline, while no instance ran that remembers). `beyond`: the incarnation that was
-- in use before, if it is known; numbers of agents and gateways may be of that one. Returns the new incarnation.
CREATE FUNCTION warren_restored(beyond bigint DEFAULT 0) RETURNS bigint
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
  former bigint;
  steps  bigint;
BEGIN
  SELECT incarnation INTO former FROM installation FOR UPDATE;
  steps := greatest(former, beyond) + 1 - former;
  UPDATE partition SET owner = 0, epoch = epoch + (steps << 32), revision = revision + (steps << 32),
                       tombstones_from = revision + (steps << 32);
  PERFORM setval('claim_number', greatest(nextval('claim_number'), (former + steps) << 32)),
          setval('gateway_stream', greatest(nextval('gateway_stream'), (former + steps) << 32)),
          setval('instance_id', least(nextval('instance_id') + 1000, 2147480000));
  UPDATE installation SET incarnation = former + steps;
  RETURN former + steps;
END $$;
