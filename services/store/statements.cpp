// services/store/statements.cpp -- the text of every statement. Parameters that are lists come as one JSON
// array, so that a statement has one plan however many rows it carries.
#include "services/store/statements.hpp"

#include <map>
#include <mutex>
#include <stdexcept>

#include "actors/core/ids.hpp"

namespace warren::sql {
namespace {

std::string join(const std::vector<std::string>& parts, const char* separator) {
  std::string out;
  for (const auto& p : parts) {
    if (!out.empty()) out += separator;
    out += p;
  }
  return out;
}

std::vector<std::string> columns(const table& t) {
  std::vector<std::string> out;
  for (int i = 0; i < t.descriptor->field_count(); ++i) out.push_back(t.descriptor->field(i)->name());
  return out;
}

/// "k(project text, name text)": the shape of a JSON list of keys.
std::string key_shape(const table& t) {
  std::vector<std::string> out;
  for (const auto& k : t.keys) out.push_back(k + (k == "tunnel_generation" ? " bigint" : " text"));
  return "k(" + join(out, ", ") + ")";
}
std::string by_key(const table& t, const char* other) {
  std::vector<std::string> out;
  for (const auto& k : t.keys) out.push_back("t." + k + " = " + other + "." + k);
  return join(out, " AND ");
}
std::string key_text(const table& t) {
  std::vector<std::string> out;
  for (const auto& k : t.keys) out.push_back("t." + k);
  return "concat_ws('/', " + join(out, ", ") + ")";
}

void add_table(std::vector<std::pair<std::string, std::string>>& out, const table& t) {
  const auto listed = " FROM jsonb_to_recordset($1::jsonb) AS " + key_shape(t) + " JOIN " + t.name + " t ON " + by_key(t, "k");
  // Parts of a judgement: three texts a row.
  out.emplace_back(lock_rows(t), "SELECT " + key_text(t) + ", t.version::text, NULL" + listed + " FOR NO KEY UPDATE OF t SKIP LOCKED");
  out.emplace_back(lock_rows_to_erase(t),
                   "SELECT " + key_text(t) + ", t.version::text, NULL" + listed + " FOR UPDATE OF t SKIP LOCKED");
  out.emplace_back(find_rows(t), "SELECT " + key_text(t) + ", NULL, NULL" + listed);

  const auto all = columns(t);
  std::vector<std::string> given, changed;
  for (const auto& c : all) {
    given.push_back("r." + c);
    bool fixed = c == "uid" || c == "created_at";
    for (const auto& k : t.keys) fixed = fixed || c == k;
    if (!fixed) changed.push_back(c + " = r." + c);
  }
  const auto populated = " FROM jsonb_populate_recordset(NULL::" + t.name + ", $1::jsonb) r";
  out.emplace_back(insert_rows(t),
                   "INSERT INTO " + t.name + " (" + join(all, ", ") + ") SELECT " + join(given, ", ") + populated);
  out.emplace_back(update_rows(t), "UPDATE " + t.name + " t SET " + join(changed, ", ") + populated + " WHERE " + by_key(t, "r"));
  out.emplace_back(erase_rows(t), "DELETE FROM " + t.name + " t USING jsonb_to_recordset($1::jsonb) AS " + key_shape(t) +
                                      " WHERE " + by_key(t, "k"));

  out.emplace_back(marked_rows(t), "SELECT to_jsonb(t) FROM " + t.name +
                                       " t WHERE partition = $1 AND version = -1 FOR NO KEY UPDATE SKIP LOCKED");
  out.emplace_back(marked_rows_named(t), "SELECT to_jsonb(t)" + listed +
                                             " WHERE t.partition = $2 AND t.version = -1 FOR NO KEY UPDATE OF t SKIP LOCKED");
  out.emplace_back(count_marked(t), "SELECT count(*) FROM " + t.name + " WHERE partition = $1 AND version = -1");
  out.emplace_back(adopt_rows(t), "UPDATE " + t.name + " t SET version = $2" + (t.route_version ? ", route_version = $2" : "") +
                                      " FROM jsonb_to_recordset($1::jsonb) AS " + key_shape(t) + " WHERE " + by_key(t, "k"));
  // One entity and what hangs off it, from one snapshot: ($1 project, $2 name) → kind, row; nothing at all when
  // partition $3 is not $4's at epoch $5. Also the attachments of a connector that is gone: who deletes it has to
  // know what hung off it.
  const bool in_project = t.keys.front() == "project";
  const std::string where = std::string{" WHERE t.name = $2 AND "} + (in_project ? "t.project = $1" : "$1::text IS NOT NULL");
  std::string load = "SELECT '" + t.name + "' AS kind, to_jsonb(t) AS image, '' AS place FROM " + t.name + " t" + where;
  if (t.name == "tunnel")
    load += " UNION ALL SELECT 'hostname_claim', to_jsonb(h), h.hostname FROM tunnel t JOIN hostname_claim h ON h.tunnel_uid = t.uid" + where;
  if (t.name == "connector")
    load += " UNION ALL SELECT 'attachment', to_jsonb(a), concat_ws('/', a.tunnel_uid, a.tunnel_generation)"
            " FROM attachment a WHERE a.project = $1 AND a.connector = $2";
  if (t.keys.back() == "name")
    out.emplace_back(load_entity_of(t), "SELECT kind, image FROM partition p LEFT JOIN (" + load + ") e ON true"
                                        " WHERE p.id = $3 AND p.owner = $4 AND p.epoch = $5 ORDER BY place NULLS FIRST");
}

}  // namespace

const std::vector<std::pair<std::string, std::string>>& statements() {
  static const auto all = [] {
    std::vector<std::pair<std::string, std::string>> out;
    for (const auto& t : tables()) add_table(out, t);

    // ---- the fence ----
    out.emplace_back("lock_partitions", R"(
      SELECT id, owner, epoch, revision FROM partition WHERE id = ANY($1::integer[]) ORDER BY id FOR NO KEY UPDATE)");
    out.emplace_back("fence", R"(
      UPDATE partition p SET revision = p.revision + 1
      FROM jsonb_to_recordset($1::jsonb) AS f(id integer, epoch bigint)
      WHERE p.id = f.id AND p.epoch = f.epoch AND p.owner = $2
      RETURNING p.id, p.epoch, p.revision)");

    // ---- judgement: three texts a row ----
    // What the fence, a statement earlier, has raised: the rows that this very transaction wrote.
    out.emplace_back("find_fenced", R"(
      SELECT p.id::text, p.epoch::text, p.revision::text FROM jsonb_array_elements_text($1::jsonb) AS k(id)
      JOIN partition p ON p.id = k.id::integer AND p.xmin::text::bigint = txid_current() % (1::bigint << 32))");
    out.emplace_back("find_requests", R"(
      SELECT a.project || E'\n' || a.method || E'\n' || a.request_id, a.digest, encode(a.response, 'hex')
      FROM jsonb_to_recordset($1::jsonb) AS k(project text, method text, request_id text)
      JOIN admin_request a ON a.project = k.project AND a.method = k.method AND a.request_id = k.request_id)");
    out.emplace_back("find_public_keys", R"(
      SELECT t.public_key, concat_ws('/', t.project, t.name), NULL
      FROM jsonb_array_elements_text($1::jsonb) AS k(public_key)
      JOIN connector t ON t.public_key = k.public_key AND t.public_key <> '')");
    out.emplace_back("find_tunnel_uids", R"(
      SELECT t.uid, NULL, NULL FROM jsonb_array_elements_text($1::jsonb) AS k(uid) JOIN tunnel t ON t.uid = k.uid)");
    out.emplace_back("lock_tunnel_uids", R"(
      SELECT t.uid, NULL, NULL FROM jsonb_array_elements_text($1::jsonb) AS k(uid) JOIN tunnel t ON t.uid = k.uid
      FOR KEY SHARE OF t SKIP LOCKED)");
    // The seed keeps these keys apart from other users of advisory locks ("warren").
    // Who has the lock gets a number for a claim, so that numbers of one name rise with its claims.
    out.emplace_back("lock_hostnames", R"(
      SELECT hostname, locked::text, CASE WHEN locked THEN nextval('claim_number')::text END
      FROM (SELECT hostname, pg_try_advisory_xact_lock(hashtextextended(hostname, 131277537543534)) AS locked
            FROM (SELECT hostname FROM jsonb_array_elements_text($1::jsonb) AS k(hostname) ORDER BY hostname) AS sorted
            OFFSET 0) AS tried)");
    // Of the same snapshot as the locks, so a claim of that very moment can be missed: the primary key finds it.
    out.emplace_back("find_claims", R"(
      SELECT t.hostname, t.tunnel_uid, NULL FROM jsonb_array_elements_text($1::jsonb) AS k(hostname)
      JOIN hostname_claim t ON t.hostname = k.hostname)");
    out.emplace_back("lock_claims", R"(
      SELECT t.hostname FROM jsonb_array_elements_text($1::jsonb) AS k(hostname)
      JOIN hostname_claim t ON t.hostname = k.hostname FOR UPDATE OF t SKIP LOCKED)");

    // ---- writing ----
    out.emplace_back("insert_claims", R"(
      INSERT INTO hostname_claim (partition, hostname, version, project, tunnel, tunnel_uid, claim)
      SELECT k.partition, k.hostname, k.version, k.project, k.tunnel, k.tunnel_uid, k.claim
      FROM jsonb_to_recordset($1::jsonb)
        AS k(partition integer, hostname text, version bigint, project text, tunnel text, tunnel_uid text, claim bigint))");
    out.emplace_back("tombstones_of", R"(
      SELECT to_jsonb(t) FROM jsonb_to_recordset($1::jsonb) AS k(partition integer, version bigint)
      JOIN tombstone t ON t.partition = k.partition AND t.version = k.version ORDER BY t.id)");
    out.emplace_back("insert_requests", R"(
      INSERT INTO admin_request (project, method, request_id, digest, response)
      SELECT k.project, k.method, k.request_id, k.digest, decode(k.response, 'hex')
      FROM jsonb_to_recordset($1::jsonb)
        AS k(project text, method text, request_id text, digest text, response text))");
    out.emplace_back("insert_audit", R"(
      INSERT INTO audit_event (project, method, resource, principal, remote, request_id, before, after)
      SELECT k.project, k.method, k.resource, k.principal, k.remote, k.request_id, nullif(k.before, '')::jsonb,
             nullif(k.after, '')::jsonb
      FROM jsonb_to_recordset($1::jsonb)
        AS k(project text, method text, resource text, principal text, remote text, request_id text,
             before text, after text))");

    // ---- rivals ----
    out.emplace_back("marked_tombstones", R"(
      SELECT id FROM tombstone WHERE partition = $1 AND version = -1 FOR NO KEY UPDATE SKIP LOCKED)");
    // Adopted a moment ago, so remembered for an hour from that moment.
    out.emplace_back("adopt_tombstones", R"(
      UPDATE tombstone t SET version = $2, deleted_at = now()
      FROM jsonb_array_elements_text($1::jsonb) AS k(id) WHERE t.id = k.id::bigint RETURNING to_jsonb(t))");

    // ---- reading ----
    // ($1 partition, $2 instance, $3 epoch): whether a rival has marked anything of it; nothing when it is not $2's at
    // epoch $3.
    std::vector<std::string> marks{"EXISTS (SELECT FROM tombstone WHERE partition = $1 AND version = -1)"};
    // ($1 partition, $2 after) → kind, row, and beside each what the partition's own row says; no kind when there is no
    // row. All rows of it when $2 is no place to go on from, else those that changed since. One statement is one snapshot, and one round trip: at a start every
    // partition is read at the same time.
    std::vector<std::string> changed;
    for (const auto& t : tables()) {
      marks.push_back("EXISTS (SELECT FROM " + t.name + " WHERE partition = $1 AND version = -1)");
      changed.push_back("SELECT '" + t.name + "' AS kind, to_jsonb(t) AS image FROM " + t.name +
                        " t WHERE t.partition = p.id AND t.version > p.after_version");
    }
    out.emplace_back("marked_any", "SELECT " + join(marks, " OR ") +
                                       " FROM partition WHERE id = $1 AND owner = $2 AND epoch = $3");
    out.emplace_back("changes_of", R"(
      WITH p AS MATERIALIZED (
        SELECT id, epoch, revision, tombstones_from, complete,
               CASE WHEN complete THEN -9223372036854775808 ELSE $2::bigint END AS after_version,
               CASE WHEN complete THEN tombstones_from ELSE $2::bigint END AS after_tombstone
        FROM (SELECT *, $2::bigint <= 0 OR $2::bigint < tombstones_from OR $2::bigint > revision AS complete
              FROM partition WHERE id = $1) AS found)
      SELECT kind, image, p.epoch, p.revision, p.tombstones_from, p.complete FROM p LEFT JOIN LATERAL ()" +
                     join(changed, " UNION ALL ") + R"( UNION ALL
        (SELECT 'tombstone', to_jsonb(t) FROM tombstone t WHERE t.partition = p.id AND t.version > p.after_tombstone
         ORDER BY t.id)) AS e ON true)");

    const std::string connector_owes = R"((t.online OR t.attached_generation < t.attachment_generation
        OR t.observed_generation < t.generation OR t.delete_time IS NOT NULL))";
    // A tunnel is programmed without its agents: one whose connector exists and does not hold its attachment has
    // yet to ask for it. One that a host name's claim is missing of has yet to claim it again.
    const std::string tunnel_owes = R"(
        (t.delete_time IS NOT NULL OR t.programmed_generation < t.generation OR t.previous_generation <> 0
             OR t.retiring <> '{}' OR t.observed_generation < t.generation
             OR EXISTS (SELECT FROM unnest(t.hostnames) AS wanted
                       WHERE NOT EXISTS (SELECT FROM hostname_claim h WHERE h.hostname = wanted AND h.tunnel_uid = t.uid))
            OR EXISTS (SELECT FROM jsonb_array_elements(t.rules) AS rule
                        JOIN connector c ON c.project = t.project AND c.name = rule ->> 'connector'
                        WHERE NOT EXISTS (SELECT FROM attachment a WHERE a.project = c.project AND a.connector = c.name
                                            AND a.tunnel_uid = t.uid AND a.tunnel_generation = t.generation))))";
    // ($1 partition, $2 instance, $3 epoch) → kind, row, the partition's revision; nothing when it is not $2's at epoch
    // $3: who has something to do, and all classes and gateways.
    out.emplace_back("owing_of", R"(
      SELECT kind, image, p.revision FROM partition p LEFT JOIN LATERAL (
        SELECT 'connector_class' AS kind, to_jsonb(t) AS image FROM connector_class t WHERE t.partition = $1
        UNION ALL SELECT 'gateway_class', to_jsonb(t) FROM gateway_class t WHERE t.partition = $1
        UNION ALL SELECT 'gateway', to_jsonb(t) FROM gateway t WHERE t.partition = $1
        UNION ALL SELECT 'connector', to_jsonb(t) FROM connector t WHERE t.partition = $1 AND )" + connector_owes + R"(
        UNION ALL SELECT 'tunnel', to_jsonb(t) FROM tunnel t WHERE t.partition = $1 AND )" + tunnel_owes + R"(
        UNION ALL SELECT 'hostname_claim', to_jsonb(h) FROM tunnel t JOIN hostname_claim h ON h.tunnel_uid = t.uid
                  WHERE t.partition = $1 AND )" + tunnel_owes + R"(
        UNION ALL SELECT 'attachment', to_jsonb(a) FROM connector t
                  JOIN attachment a ON a.project = t.project AND a.connector = t.name
                  WHERE t.partition = $1 AND )" + connector_owes + R"() AS e ON true
      WHERE p.id = $1 AND p.owner = $2 AND p.epoch = $3)");
    out.emplace_back("tunnels_naming", R"(
      SELECT 'tunnel', to_jsonb(t) FROM tunnel t
      WHERE warren_named_connectors(project, rules, previous_rules) @> ARRAY[$1::text || '/' || $2::text])");
    out.emplace_back("tunnels_by_uid", R"(
      SELECT to_jsonb(t) FROM jsonb_array_elements_text($1::jsonb) AS k(uid) JOIN tunnel t ON t.uid = k.uid)");
    out.emplace_back("find_answer", R"(
      SELECT digest, encode(response, 'hex') FROM admin_request
      WHERE project = $1 AND method = $2 AND request_id = $3)");
    out.emplace_back("list_audit", R"(
      SELECT id, ms, project, method, resource, principal, remote, request_id, before, after FROM (
        SELECT *, sum(octet_length(before) + octet_length(after))
                    OVER (ORDER BY id DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS newer_bytes
        FROM (SELECT id, (extract(epoch FROM at) * 1000)::bigint AS ms, project, method, resource, principal, remote,
                     request_id, coalesce(before::text, '') AS before, coalesce(after::text, '') AS after
              FROM audit_event WHERE ($1 = '' OR project = $1) AND id < $2 ORDER BY id DESC LIMIT $3) AS newest) AS page
      WHERE coalesce(newer_bytes, 0) <= $4::bigint ORDER BY id DESC)");
    out.emplace_back("next_gateway_stream", "SELECT nextval('gateway_stream')");

    // ---- forgetting ----
    out.emplace_back("purge_tombstones", R"(
      WITH gone AS (DELETE FROM tombstone WHERE partition = $1 AND version <> -1
                      AND deleted_at < now() - $2::bigint * interval '1 millisecond' RETURNING version)
      UPDATE partition SET tombstones_from = greatest(tombstones_from, (SELECT max(version) FROM gone))
      WHERE id = $1 AND EXISTS (SELECT FROM gone))");
    out.emplace_back("owned_partitions", "SELECT id FROM partition WHERE owner = $1 ORDER BY id");
    // In small bites: a long DELETE would hold back vacuum and writers of the same pages.
    out.emplace_back("purge_requests", R"(
      DELETE FROM admin_request WHERE ctid = ANY (ARRAY(SELECT ctid FROM admin_request
        WHERE created_at < now() - $1::bigint * interval '1 millisecond' LIMIT 5000)))");
    out.emplace_back("purge_audit", R"(
      DELETE FROM audit_event WHERE ctid = ANY (ARRAY(SELECT ctid FROM audit_event
        WHERE at < now() - $1::bigint * interval '1 millisecond' LIMIT 5000)))");
    out.emplace_back("purge_instances", "DELETE FROM instance WHERE expires_at < now() - interval '1 hour'");

    // ---- incarnation ----
    // The timeline comes from the WAL's insertion point: pg_control_checkpoint() still says the old one until
    // the first checkpoint after a promotion.
    out.emplace_back("read_installation", R"(
      SELECT incarnation, partitions, system_identifier, timeline,
             ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::integer AS timeline_now,
             has_function_privilege('pg_control_system()', 'execute') AS identifier_readable
      FROM installation)");
    out.emplace_back("lock_installation", "SELECT 1 FROM installation FOR UPDATE");
    out.emplace_back("read_system_identifier", "SELECT system_identifier FROM pg_control_system()");
    out.emplace_back("record_installation", R"(
      UPDATE installation SET system_identifier = coalesce($1::bigint, system_identifier), timeline = $2)");
    out.emplace_back("read_revisions", "SELECT id, revision FROM partition");
    out.emplace_back("raise_incarnation", "UPDATE installation SET incarnation = $1::bigint");
    out.emplace_back("raise_partitions", R"(
      UPDATE partition SET owner = 0, epoch = epoch + ($1::bigint << 32), revision = revision + ($1::bigint << 32),
                           tombstones_from = revision + ($1::bigint << 32))");
    // Numbers of the lost time are out there: as claims and streams in memories, as instances that still run.
    out.emplace_back("raise_sequences", R"(
      SELECT setval('claim_number', greatest(nextval('claim_number'), $1::bigint << 32)),
             setval('gateway_stream', greatest(nextval('gateway_stream'), $1::bigint << 32)),
             setval('instance_id', least(nextval('instance_id') + 1000, 2147480000)))");

    // ---- instance lease ---- 1463898707 ("WARS") is the class of the instances' advisory locks.
    out.emplace_back("next_instance_id", "SELECT nextval('instance_id')");
    out.emplace_back("hold_instance_lock", "SELECT pg_try_advisory_lock(1463898707, $1::integer)");
    out.emplace_back("end_former_lock_session", R"(
      SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
      WHERE datname = current_database() AND application_name = 'warrend/' || $1::bigint || '/lock'
        AND usename = current_user AND pid <> pg_backend_pid())");
    out.emplace_back("lock_instance_name", "SELECT pg_advisory_xact_lock(1463898708, hashtext($1))");
    out.emplace_back("instances_named", R"(
      SELECT id, (extract(epoch FROM started_at) * 1000)::bigint,
             pg_try_advisory_xact_lock_shared(1463898707, id::integer) FROM instance WHERE name = $1)");
    out.emplace_back("remove_instance", "DELETE FROM instance WHERE id = $1");
    out.emplace_back("insert_instance", R"(
      INSERT INTO instance (id, name, expires_at) VALUES ($1, $2, now() + $3::bigint * interval '1 millisecond'))");
    const std::string placement_after_renewal = R"(
      SELECT (SELECT (extract(epoch FROM expires_at) * 1000)::bigint FROM renewed),
             (SELECT incarnation FROM installation),
             (SELECT coalesce(jsonb_agg(jsonb_build_array(id, name, (extract(epoch FROM started_at) * 1000)::bigint,
                (extract(epoch FROM expires_at) * 1000)::bigint, bus_ok, draining, expires_at > now()) ORDER BY id), '[]')
              FROM instance),
             (SELECT coalesce(jsonb_agg(jsonb_build_array(id, owner, epoch, revision) ORDER BY id), '[]') FROM partition))";
    out.emplace_back("renew", R"(
      WITH renewed AS (
        UPDATE instance SET expires_at = now() + $2::bigint * interval '1 millisecond', bus_ok = $3, draining = $4
        WHERE id = $1 RETURNING expires_at))" + placement_after_renewal);
    // The same of one that is asked to drain; the trail says so once, however often it is carried out.
    // ($1 … $3 as above, $4 method, $5 resource, $6 principal, $7 remote, $8 before, $9 after)
    out.emplace_back("renew_drained", R"(
      WITH trail AS (
        INSERT INTO audit_event (project, method, resource, principal, remote, request_id, before, after)
        SELECT '', $4, $5, $6, $7, '', $8::jsonb, $9::jsonb FROM instance WHERE id = $1 AND NOT draining),
      renewed AS (
        UPDATE instance SET expires_at = now() + $2::bigint * interval '1 millisecond', bus_ok = $3, draining = true
        WHERE id = $1 RETURNING expires_at))" + placement_after_renewal);
    out.emplace_back("view_placement", R"(
      SELECT NULL::bigint,
             (SELECT incarnation FROM installation),
             (SELECT coalesce(jsonb_agg(jsonb_build_array(id, name, (extract(epoch FROM started_at) * 1000)::bigint,
                (extract(epoch FROM expires_at) * 1000)::bigint, bus_ok, draining, expires_at > now()) ORDER BY id), '[]')
              FROM instance),
             (SELECT coalesce(jsonb_agg(jsonb_build_array(id, owner, epoch, revision) ORDER BY id), '[]') FROM partition))");
    // May it be taken: nobody's, ours, or of an instance that is gone, expired or dead (its lock can be had).
    // The lock is probed only when nothing else decides: it is shared, so that two who probe do not meet. A server that
    // has just started has no locks of anybody yet: $3 is how long (ms) everybody needs to take theirs again.
    out.emplace_back("judge_owners", R"(
      SELECT p.id, p.owner, p.epoch
      FROM partition p LEFT JOIN instance i ON i.id = p.owner
      WHERE p.id = ANY ($1::integer[])
        AND CASE WHEN p.owner = 0 OR p.owner = $2 OR i.id IS NULL OR i.expires_at <= now() THEN true
                 WHEN pg_postmaster_start_time() > clock_timestamp() - make_interval(secs => $3::bigint / 1000.0) THEN false
                 ELSE pg_try_advisory_xact_lock_shared(1463898707, i.id::integer) END
      ORDER BY p.id)");
    // Its row says so to everybody. A row that is being renewed at this moment is somebody's who lives.
    out.emplace_back("end_lease_of_dead", R"(
      WITH suspect AS (
        SELECT id FROM instance
        WHERE id = $1 AND expires_at > now()
          AND CASE WHEN pg_postmaster_start_time() > clock_timestamp() - make_interval(secs => $2::bigint / 1000.0) THEN false
                   ELSE pg_try_advisory_xact_lock_shared(1463898707, id::integer) END
        FOR UPDATE SKIP LOCKED)
      UPDATE instance SET expires_at = now() FROM suspect WHERE instance.id = suspect.id RETURNING instance.id)");
    out.emplace_back("end_sessions", R"(
      SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
      WHERE datname = current_database() AND application_name LIKE 'warrend/' || $1::bigint || '/%'
        AND usename = current_user AND pid <> pg_backend_pid())");
    out.emplace_back("take", R"(
      UPDATE partition SET owner = $2, epoch = epoch + 1 WHERE id = $1 AND owner = $3 AND epoch = $4
        AND EXISTS (SELECT FROM instance WHERE id = $2 AND expires_at > now())
      RETURNING epoch)");
    out.emplace_back("take_unlocked", R"(
      WITH free AS (
        SELECT p.id FROM partition p
        JOIN unnest($2::integer[], $3::bigint[], $4::bigint[]) AS judged (id, owner, epoch) USING (id, owner, epoch)
        ORDER BY p.id FOR UPDATE OF p SKIP LOCKED)
      UPDATE partition SET owner = $1, epoch = epoch + 1 FROM free WHERE partition.id = free.id
        AND EXISTS (SELECT FROM instance WHERE instance.id = $1 AND expires_at > now())
      RETURNING partition.id)");
    out.emplace_back("release", "UPDATE partition SET owner = 0 WHERE id = $1 AND owner = $2 AND epoch = $3");
    return out;
  }();
  return all;
}

namespace {

/// The text of a part, its parameter numbered by its place.
std::string part_text(const std::string& name, std::size_t place) {
  for (const auto& [known, text] : statements())
    if (known == name) {
      auto out = text;
      const auto number = "$" + std::to_string(place + 1);
      for (auto at = out.find("$1"); at != std::string::npos; at = out.find("$1", at + number.size())) out.replace(at, 2, number);
      return out;
    }
  throw std::logic_error{"there is no statement " + name};
}

/// Composed once for each combination; the server keeps 63 characters of a name.
const std::pair<std::string, std::string>& composed(const char* kind, const std::vector<std::string>& parts,
                                                    std::string (*compose)(const std::vector<std::string>&)) {
  static std::mutex mutex;
  static std::map<std::string, std::pair<std::string, std::string>> all;
  const auto key = kind + join(parts, "+");
  std::lock_guard lock{mutex};
  auto found = all.find(key);
  if (found == all.end())
    found = all.emplace(key, std::pair{kind + std::to_string(fnv1a_64(key)), compose(parts)}).first;
  return found->second;
}

}  // namespace

const std::pair<std::string, std::string>& judgement_of(const std::vector<std::string>& parts) {
  return composed("judge_", parts, [](const std::vector<std::string>& each) {
    std::vector<std::string> out;
    for (std::size_t n = 0; n < each.size(); ++n)
      out.push_back("SELECT " + std::to_string(n) + ", a, b, c FROM (" + part_text(each[n], n) + ") AS part(a, b, c)");
    return join(out, " UNION ALL ");
  });
}

const std::pair<std::string, std::string>& writing_of(const std::vector<std::string>& parts) {
  return composed("write_", parts, [](const std::vector<std::string>& each) {
    std::vector<std::string> writes, checks;
    for (std::size_t n = 0; n < each.size(); ++n) {
      const auto written = "w" + std::to_string(n);
      writes.push_back(written + " AS (" + part_text(each[n], n) + " RETURNING 1)");
      checks.push_back("1 / ((SELECT count(*) FROM " + written + ") = jsonb_array_length($" + std::to_string(n + 1) +
                       "::jsonb))::integer");
    }
    return "WITH " + join(writes, ", ") + " SELECT " + join(checks, ", ");
  });
}

}  // namespace warren::sql
