-- migrations/0003_plans_that_last.sql -- the same answer for less: PostgreSQL plans a function in SQL anew for each
-- statement that needs it, and the index of connectors' names needs this one for every row of a tunnel that is
-- written: half of what writing it takes. In PL/pgSQL its plan lasts as long as the session.

CREATE OR REPLACE FUNCTION warren_named_connectors(project text, rules jsonb, previous_rules jsonb) RETURNS text[]
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
  RETURN (
    SELECT coalesce(array_agg(DISTINCT $1 || '/' || (rule ->> 'connector')), '{}')
    FROM jsonb_array_elements($2 || $3) AS rule
    WHERE jsonb_typeof(rule) = 'object' AND rule ->> 'connector' IS NOT NULL);
END $$;
