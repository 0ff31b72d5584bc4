-- migrations/0001_init.sql -- every table of Warren. Forward only, never edited once landed.
--
-- Conventions
--   * A replicated table has the columns of its message in schema/warren/core/v1/rows.proto, name by name:
--     Timestamps are timestamptz, repeated strings text[], repeated messages jsonb. Programs write rows with
--     jsonb_populate_recordset and read them with to_jsonb; a column that a program does not know is left alone.
--   * `version` is the revision of the partition in the transaction that wrote the row; -1 means that a rival
--     (any session that has not SET warren.writer = 'on') wrote it and its owner has not adopted it yet.
--   * `route_version` is the version of the last change that gateways have to know.
--   * Constraints are named <table>_<column>: a program that is refused tells its caller which field it was.
--     They guard what would hurt others (keys become NATS subjects); a spec that is merely wrong is stored,
--     and its owner says so in a condition.
--
-- The setting warren.partitions (default 64) is read once, here; the number is fixed from then on.

-- ---- the installation ----------------------------------------------------------------------------------

CREATE TABLE schema_migration (
  level      integer PRIMARY KEY,              -- the file's number
  name       text NOT NULL,                    -- the file's name
  checksum   text NOT NULL,                    -- SHA-256 of its content, hex: a landed file is never edited
  applied_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE installation (
  id                boolean PRIMARY KEY DEFAULT true CHECK (id),  -- one row
  partitions        integer NOT NULL CHECK (partitions BETWEEN 1 AND 4096),
  -- Which life of the database this is. When the system identifier or the timeline is another one (a failover
  -- that lost a second, a restore), it grows by one and every epoch and revision by 2^32.
  incarnation       bigint NOT NULL DEFAULT 1,
  system_identifier bigint,                    -- NULL: not looked at yet, or may not be read
  timeline          integer,
  fits_from         integer NOT NULL DEFAULT 1,-- programs that know no level up to this one do not fit any more
  initialised_at    timestamptz NOT NULL DEFAULT now()
);
INSERT INTO installation (partitions)
  VALUES (coalesce(nullif(current_setting('warren.partitions', true), ''), '64')::integer);

-- Who runs which partition. Ids 0 … partitions-1 hold projects; the one after them holds what belongs to no
-- project (gateways, classes). Locked and counted up by every transaction of its owner (the fence).
CREATE TABLE partition (
  id              integer PRIMARY KEY,
  owner           bigint NOT NULL DEFAULT 0,   -- instance.id; 0: nobody
  epoch           bigint NOT NULL DEFAULT 0,   -- grows with each change of owner
  revision        bigint NOT NULL DEFAULT 0,   -- grows with each transaction
  tombstones_from bigint NOT NULL DEFAULT 0    -- deletions up to this revision are forgotten
) WITH (fillfactor = 10);                      -- room for HOT updates: the hottest rows there are
INSERT INTO partition (id)
  SELECT generate_series(0, partitions) FROM installation;

-- One row for each start of a warrend, prolonged every second while it lives.
CREATE SEQUENCE instance_id AS integer;        -- integer: the second key of its advisory lock
CREATE TABLE instance (
  id         bigint PRIMARY KEY,
  name       text NOT NULL,                    -- configured; one live instance holds it
  started_at timestamptz NOT NULL DEFAULT now(),
  expires_at timestamptz NOT NULL,
  bus_ok     boolean NOT NULL DEFAULT true,    -- it hears NATS
  draining   boolean NOT NULL DEFAULT false    -- it takes no partitions
) WITH (fillfactor = 20);

CREATE SEQUENCE claim_number;                  -- orders claims of the same host name
CREATE SEQUENCE gateway_stream;                -- of two streams of a gateway, the higher is the newer

-- ---- which partition a project lives in ----------------------------------------------------------------

-- 64-bit FNV-1a, the same as actors/core/ids.hpp. numeric, because bigint has no unsigned multiplication.
CREATE FUNCTION warren_fnv1a_64(input text) RETURNS numeric
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
  bytes bytea := convert_to(input, 'UTF8');
  hash  numeric := 14695981039346656037;
  low   integer;
BEGIN
  FOR i IN 0 .. length(bytes) - 1 LOOP
    low := (hash % 256)::integer;
    hash := (hash - low + (low # get_byte(bytes, i))) * 1099511628211 % 18446744073709551616;
  END LOOP;
  RETURN hash;
END $$;

CREATE FUNCTION warren_partition(project text) RETURNS integer
LANGUAGE sql STABLE PARALLEL SAFE SET search_path FROM CURRENT AS $$
  SELECT CASE WHEN coalesce($1, '') = '' THEN partitions
              ELSE (warren_fnv1a_64($1) % partitions)::integer END
  FROM installation
$$;

CREATE FUNCTION warren_label_ok(label text) RETURNS boolean  -- DNS-1123
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT label ~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$' $$;

-- ---- classes and gateways (the reserved partition) -----------------------------------------------------

CREATE TABLE connector_class (
  partition        integer NOT NULL,
  name             text PRIMARY KEY CONSTRAINT connector_class_name CHECK (warren_label_ok(name)),
  uid              text NOT NULL DEFAULT gen_random_uuid()::text,
  version          bigint NOT NULL,
  route_version    bigint NOT NULL DEFAULT 0,
  generation       bigint NOT NULL DEFAULT 1,
  -- CIDR. Where connectors of this class may be dialled; loopback, link-local, multicast and unspecified
  -- addresses only through a network here that lies within them: 0.0.0.0/0 does not open 127.0.0.1.
  allowed_networks text[] NOT NULL DEFAULT '{}'
                   CONSTRAINT connector_class_allowed_networks CHECK (array_position(allowed_networks, NULL) IS NULL),
  created_at       timestamptz NOT NULL DEFAULT now(),
  updated_at       timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE gateway_class (
  partition              integer NOT NULL,
  name                   text PRIMARY KEY CONSTRAINT gateway_class_name CHECK (warren_label_ok(name)),
  uid                    text NOT NULL DEFAULT gen_random_uuid()::text,
  version                bigint NOT NULL,
  route_version          bigint NOT NULL DEFAULT 0,
  generation             bigint NOT NULL DEFAULT 1,
  dial_mode              text NOT NULL DEFAULT 'direct'
                         CONSTRAINT gateway_class_dial_mode CHECK (dial_mode IN ('direct', 'tunnel-listener')),
  listen                 text[] NOT NULL DEFAULT '{}'
                         CONSTRAINT gateway_class_listen CHECK (array_position(listen, NULL) IS NULL),
  stream_idle_timeout_ms bigint NOT NULL DEFAULT 300000
                         CONSTRAINT gateway_class_stream_idle_timeout_ms CHECK (stream_idle_timeout_ms >= 0),
  created_at             timestamptz NOT NULL DEFAULT now(),
  updated_at             timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE gateway (
  partition     integer NOT NULL,
  name          text PRIMARY KEY CONSTRAINT gateway_name CHECK (warren_label_ok(name)),
  uid           text NOT NULL DEFAULT gen_random_uuid()::text,
  version       bigint NOT NULL,
  route_version bigint NOT NULL DEFAULT 0,
  generation    bigint NOT NULL DEFAULT 1,
  class         text NOT NULL DEFAULT 'default',
  created_at    timestamptz NOT NULL DEFAULT now(),
  updated_at    timestamptz NOT NULL DEFAULT now()
);

-- ---- connectors and tunnels ----------------------------------------------------------------------------

CREATE TABLE connector (
  partition             integer NOT NULL,
  project               text NOT NULL CONSTRAINT connector_project CHECK (warren_label_ok(project)),
  name                  text NOT NULL CONSTRAINT connector_name CHECK (warren_label_ok(name)),
  uid                   text NOT NULL DEFAULT gen_random_uuid()::text CONSTRAINT connector_uid UNIQUE,
  version               bigint NOT NULL,
  route_version         bigint NOT NULL DEFAULT 0,
  generation            bigint NOT NULL DEFAULT 1,
  observed_generation   bigint NOT NULL DEFAULT 0,
  class                 text NOT NULL DEFAULT 'default',
  lease_duration_ms     bigint NOT NULL DEFAULT 30000,
  public_key            text NOT NULL DEFAULT '',          -- Ed25519, 64 lower-case hex digits
  home_relay            text NOT NULL DEFAULT '',
  addresses             text[] NOT NULL DEFAULT '{}'
                        CONSTRAINT connector_addresses CHECK (array_position(addresses, NULL) IS NULL),
  addressing_generation bigint NOT NULL DEFAULT 0,
  addressing_error      text NOT NULL DEFAULT '',
  session               bigint NOT NULL DEFAULT 0,
  session_token_hash    text NOT NULL DEFAULT '',          -- SHA-256, hex; the token itself is stored nowhere
  agent_version         text NOT NULL DEFAULT '',
  clock_skew_ms         bigint NOT NULL DEFAULT 0,
  online                boolean NOT NULL DEFAULT false,
  dialable              boolean NOT NULL DEFAULT false,
  attachment_generation bigint NOT NULL DEFAULT 0,
  attached_generation   bigint NOT NULL DEFAULT 0,
  conditions            jsonb NOT NULL DEFAULT '[]'
                        CONSTRAINT connector_conditions CHECK (jsonb_typeof(conditions) = 'array'),
  created_at            timestamptz NOT NULL DEFAULT now(),
  updated_at            timestamptz NOT NULL DEFAULT now(),
  delete_time           timestamptz,
  PRIMARY KEY (project, name)
);
-- One key, one connector, in the whole installation: a key is an agent's identity.
CREATE UNIQUE INDEX connector_public_key ON connector (public_key) WHERE public_key <> '';
-- What a starting partition has to wake; statements.cpp repeats the condition word for word.
CREATE INDEX connector_owes ON connector (partition)
  WHERE online OR attached_generation < attachment_generation OR observed_generation < generation
     OR delete_time IS NOT NULL;

CREATE TABLE tunnel (
  partition             integer NOT NULL,
  project               text NOT NULL CONSTRAINT tunnel_project CHECK (warren_label_ok(project)),
  name                  text NOT NULL CONSTRAINT tunnel_name CHECK (warren_label_ok(name)),
  uid                   text NOT NULL DEFAULT gen_random_uuid()::text CONSTRAINT tunnel_uid UNIQUE,
  version               bigint NOT NULL,
  route_version         bigint NOT NULL DEFAULT 0,
  generation            bigint NOT NULL DEFAULT 1,
  observed_generation   bigint NOT NULL DEFAULT 0,
  hostnames             text[] NOT NULL DEFAULT '{}'
                        CONSTRAINT tunnel_hostnames CHECK (array_position(hostnames, NULL) IS NULL),
  -- [{"path_prefix": "/", "connector": "home", "target": "http://localhost:8080", "tls_verify": true}, …]
  rules                 jsonb NOT NULL DEFAULT '[]'
                        CONSTRAINT tunnel_rules CHECK (jsonb_typeof(rules) = 'array'),
  enabled               boolean NOT NULL DEFAULT true,
  gateway_class         text NOT NULL DEFAULT 'default',
  previous_generation   bigint NOT NULL DEFAULT 0,
  retiring              text[] NOT NULL DEFAULT '{}',
  previous_rules        jsonb NOT NULL DEFAULT '[]'
                        CONSTRAINT tunnel_previous_rules CHECK (jsonb_typeof(previous_rules) = 'array'),
  programmed_generation bigint NOT NULL DEFAULT 0,
  -- [{"type", "status", "reason", "message", "observed_generation", "last_transition_time"}, …]
  conditions            jsonb NOT NULL DEFAULT '[]'
                        CONSTRAINT tunnel_conditions CHECK (jsonb_typeof(conditions) = 'array'),
  created_at            timestamptz NOT NULL DEFAULT now(),
  updated_at            timestamptz NOT NULL DEFAULT now(),
  delete_time           timestamptz,
  PRIMARY KEY (project, name)
);
CREATE INDEX tunnel_owes ON tunnel (partition)
  WHERE delete_time IS NOT NULL OR programmed_generation < generation OR previous_generation <> 0 OR retiring <> '{}'
     OR observed_generation < generation;

-- "project/connector" of every rule: who has to be told when a connector appears.
CREATE FUNCTION warren_named_connectors(project text, rules jsonb, previous_rules jsonb) RETURNS text[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
  SELECT coalesce(array_agg(DISTINCT $1 || '/' || (rule ->> 'connector')), '{}')
  FROM jsonb_array_elements($2 || $3) AS rule
  WHERE jsonb_typeof(rule) = 'object' AND rule ->> 'connector' IS NOT NULL
$$;
CREATE INDEX tunnel_named_connectors ON tunnel
  USING gin (warren_named_connectors(project, rules, previous_rules));

-- A host name belongs to one tunnel in the whole installation. Written by programs under an advisory lock of
-- the name, so that claiming never waits.
CREATE TABLE hostname_claim (
  partition  integer NOT NULL,
  hostname   text PRIMARY KEY
             CONSTRAINT hostname_claim_hostname CHECK (length(hostname) BETWEEN 1 AND 253),
  version    bigint NOT NULL,
  project    text NOT NULL,
  tunnel     text NOT NULL,
  tunnel_uid text NOT NULL CONSTRAINT hostname_claim_tunnel_uid REFERENCES tunnel (uid) ON DELETE CASCADE,
  claim      bigint NOT NULL DEFAULT nextval('claim_number')
);
CREATE INDEX hostname_claim_by_tunnel ON hostname_claim (tunnel_uid);

-- What an agent shall hold. Attached: attachment_generation <= the connector's attached_generation.
CREATE TABLE attachment (
  partition             integer NOT NULL,
  project               text NOT NULL CONSTRAINT attachment_project CHECK (warren_label_ok(project)),
  connector             text NOT NULL CONSTRAINT attachment_connector CHECK (warren_label_ok(connector)),
  tunnel_uid            text NOT NULL CONSTRAINT attachment_tunnel_uid REFERENCES tunnel (uid) ON DELETE CASCADE,
  tunnel_generation     bigint NOT NULL,
  version               bigint NOT NULL,
  tunnel                text NOT NULL DEFAULT '',
  attachment_generation bigint NOT NULL DEFAULT 0,
  -- [{"index": 0, "target": "http://localhost:8080", "tls_verify": true}, …]
  rules                 jsonb NOT NULL DEFAULT '[]'
                        CONSTRAINT attachment_rules CHECK (jsonb_typeof(rules) = 'array'),
  target_state          text NOT NULL DEFAULT 'Unknown',
  target_message        text NOT NULL DEFAULT '',
  PRIMARY KEY (project, connector, tunnel_uid, tunnel_generation)
);
CREATE INDEX attachment_by_tunnel ON attachment (tunnel_uid);

-- What is left of a deleted row for an hour. `key`: the key columns joined by '/'; `uid`: the row's uid, of a
-- claim or an attachment the tunnel's.
CREATE TABLE tombstone (
  id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  partition  integer NOT NULL,
  version    bigint NOT NULL,
  kind       text NOT NULL,
  key        text NOT NULL,
  uid        text NOT NULL DEFAULT '',
  deleted_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX tombstone_by_age ON tombstone (partition, deleted_at);

-- What a replica reads after a gap, and what rivals touched.
CREATE INDEX connector_class_changed ON connector_class (partition, version);
CREATE INDEX gateway_class_changed   ON gateway_class   (partition, version);
CREATE INDEX gateway_changed         ON gateway         (partition, version);
CREATE INDEX connector_changed       ON connector       (partition, version);
CREATE INDEX tunnel_changed          ON tunnel          (partition, version);
CREATE INDEX hostname_claim_changed  ON hostname_claim  (partition, version);
CREATE INDEX attachment_changed      ON attachment      (partition, version);
CREATE INDEX tombstone_changed       ON tombstone       (partition, version);

CREATE INDEX connector_class_marked ON connector_class (partition) WHERE version = -1;
CREATE INDEX gateway_class_marked   ON gateway_class   (partition) WHERE version = -1;
CREATE INDEX gateway_marked         ON gateway         (partition) WHERE version = -1;
CREATE INDEX connector_marked       ON connector       (partition) WHERE version = -1;
CREATE INDEX tunnel_marked          ON tunnel          (partition) WHERE version = -1;
CREATE INDEX hostname_claim_marked  ON hostname_claim  (partition) WHERE version = -1;
CREATE INDEX attachment_marked      ON attachment      (partition) WHERE version = -1;
CREATE INDEX tombstone_marked       ON tombstone       (partition) WHERE version = -1;

-- ---- requests and their trail --------------------------------------------------------------------------

-- The first answer to a request id, for 24 h.
CREATE TABLE admin_request (
  project    text NOT NULL,                    -- '' for what belongs to none
  method     text NOT NULL,
  request_id text NOT NULL CONSTRAINT admin_request_request_id CHECK (length(request_id) BETWEEN 1 AND 128),
  digest     text NOT NULL,                    -- SHA-256 of the request without its id, hex
  response   bytea NOT NULL,                   -- warren.core.v1.Reply, serialised
  created_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (project, method, request_id)
);
CREATE INDEX admin_request_by_age ON admin_request (created_at);

-- Who changed what, for 90 days.
CREATE TABLE audit_event (
  id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  at         timestamptz NOT NULL DEFAULT now(),
  project    text NOT NULL,
  method     text NOT NULL,
  resource   text NOT NULL,                    -- "projects/p/tunnels/t"
  principal  text NOT NULL,
  remote     text NOT NULL,
  request_id text NOT NULL,
  before     jsonb,                            -- NULL: did not exist
  after      jsonb                             -- NULL: is gone
);
CREATE INDEX audit_event_by_project ON audit_event (project, id);
CREATE INDEX audit_event_by_age ON audit_event (at);

-- ---- rivals ---------------------------------------------------------------------------------------------

CREATE FUNCTION warren_row_key(kind text, r jsonb) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
  SELECT CASE kind
    WHEN 'tunnel'         THEN concat_ws('/', r->>'project', r->>'name')
    WHEN 'connector'      THEN concat_ws('/', r->>'project', r->>'name')
    WHEN 'attachment'     THEN concat_ws('/', r->>'project', r->>'connector', r->>'tunnel_uid', r->>'tunnel_generation')
    WHEN 'hostname_claim' THEN r->>'hostname'
    ELSE r->>'name' END
$$;

-- Marks what a rival writes and tells whoever listens. It never locks the partition's row: a trigger that did
-- would wait for the owner's fence while the owner waits for the row.
CREATE FUNCTION warren_mark_rival() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
  new_row jsonb := to_jsonb(NEW);
  old_row jsonb;
  spec    text[] := CASE TG_TABLE_NAME
    WHEN 'tunnel'          THEN ARRAY['hostnames', 'rules', 'enabled', 'gateway_class']
    WHEN 'connector'       THEN ARRAY['class', 'lease_duration_ms']
    WHEN 'gateway'         THEN ARRAY['class']
    WHEN 'gateway_class'   THEN ARRAY['dial_mode', 'listen', 'stream_idle_timeout_ms']
    WHEN 'connector_class' THEN ARRAY['allowed_networks']
    ELSE '{}'::text[] END;
  field   text;
BEGIN
  NEW.partition := warren_partition(coalesce(new_row ->> 'project', ''));
  NEW.version := -1;
  IF TG_OP = 'UPDATE' THEN
    old_row := to_jsonb(OLD);
    IF warren_row_key(TG_TABLE_NAME, new_row) IS DISTINCT FROM warren_row_key(TG_TABLE_NAME, old_row)
       OR new_row ->> 'uid' IS DISTINCT FROM old_row ->> 'uid' THEN
      RAISE EXCEPTION 'the key of a % does not change: delete it and insert another', TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation';
    END IF;
    IF TG_TABLE_NAME NOT IN ('attachment', 'hostname_claim') THEN
      NEW.route_version := OLD.route_version;
      NEW.updated_at := now();
      -- Another spec is another generation, whoever writes it: etags and acknowledgements depend on it.
      FOREACH field IN ARRAY spec LOOP
        IF new_row -> field IS DISTINCT FROM old_row -> field AND NEW.generation = OLD.generation THEN
          NEW.generation := OLD.generation + 1;
        END IF;
      END LOOP;
    END IF;
  END IF;
  PERFORM pg_notify('warren_rival', NEW.partition::text);
  RETURN NEW;
END $$;

-- Leaves a tombstone: at the partition's revision when its owner deletes (inside the fence, which has counted
-- it up), marked when a rival does.
CREATE FUNCTION warren_leave_tombstone() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
  old_row jsonb := to_jsonb(OLD);
  at_version bigint := -1;
BEGIN
  IF current_setting('warren.writer', true) = 'on' THEN
    SELECT revision INTO at_version FROM partition WHERE id = OLD.partition;
  ELSE
    PERFORM pg_notify('warren_rival', OLD.partition::text);
  END IF;
  INSERT INTO tombstone (partition, version, kind, key, uid)
    VALUES (OLD.partition, at_version, TG_TABLE_NAME, warren_row_key(TG_TABLE_NAME, old_row),
            coalesce(old_row ->> 'uid', old_row ->> 'tunnel_uid', ''));
  RETURN NULL;
END $$;

CREATE FUNCTION warren_refuse_truncate() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'TRUNCATE leaves no trace of what is gone: DELETE FROM %', TG_TABLE_NAME;
END $$;

DO $$
DECLARE
  kind text;
BEGIN
  FOREACH kind IN ARRAY ARRAY['connector_class', 'gateway_class', 'gateway', 'connector', 'tunnel',
                              'hostname_claim', 'attachment'] LOOP
    EXECUTE format($f$
      CREATE TRIGGER %1$s_rival BEFORE INSERT OR UPDATE ON %1$I FOR EACH ROW
        WHEN (current_setting('warren.writer', true) IS DISTINCT FROM 'on')
        EXECUTE FUNCTION warren_mark_rival()$f$, kind);
    EXECUTE format($f$
      CREATE TRIGGER %1$s_gone AFTER DELETE ON %1$I FOR EACH ROW
        EXECUTE FUNCTION warren_leave_tombstone()$f$, kind);
    EXECUTE format($f$
      CREATE TRIGGER %1$s_truncate BEFORE TRUNCATE ON %1$I FOR EACH STATEMENT
        EXECUTE FUNCTION warren_refuse_truncate()$f$, kind);
  END LOOP;
END $$;

-- ---- what exists from the start --------------------------------------------------------------------------

SET LOCAL warren.writer = 'on';
INSERT INTO connector_class (partition, name, version, route_version, allowed_networks)
  SELECT partitions, 'default', 1, 1, '{0.0.0.0/0,::/0}' FROM installation;
INSERT INTO gateway_class (partition, name, version, route_version, dial_mode, listen, stream_idle_timeout_ms)
  SELECT partitions, 'default', 1, 1, 'direct', '{127.0.0.1:10080}', 300000 FROM installation;
UPDATE partition SET revision = 1 WHERE id = (SELECT partitions FROM installation);
