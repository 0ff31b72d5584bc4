// services/warrenctl/operations.cpp -- the verbs of instances and partitions, the audit and the bundle for diagnosis.
#include "services/warrenctl/diag.hpp"
#include "services/warrenctl/command_line.hpp"

namespace warren::ctl {

namespace {

std::vector<api::Instance> all_instances(session& s) {
  std::vector<api::Instance> all;
  api::ListInstancesRequest q;
  q.set_page_size(1000);
  for (;;) {
    const auto page = s.call<operations>(&operations::Stub::ListInstances, q);
    all.insert(all.end(), page.instances().begin(), page.instances().end());
    if (page.next_page_token().empty()) return all;
    q.set_page_token(page.next_page_token());
  }
}
/// Of the id, or of the name that it was configured with: then the one that is alive.
std::string instance_name(session& s) {
  const auto& given = s.o.name;
  if (given.find_first_not_of("0123456789") == std::string::npos || given.find('/') != std::string::npos)
    return s.full("instances");
  std::string found;
  for (const auto& each : all_instances(s))
    if (each.display_name() == given && (found.empty() || each.alive())) found = each.name();
  if (found.empty()) throw refused{grpc::Status{grpc::StatusCode::NOT_FOUND, "there is no instance " + given}};
  return found;
}
api::Instance get_instance(session& s, const std::string& name) {
  api::GetInstanceRequest q;
  q.set_name(name);
  return s.call<operations>(&operations::Stub::GetInstance, q);
}
void drain_instance(session& s) {
  api::DrainInstanceRequest q;
  q.set_name(instance_name(s));
  auto now = s.call<operations>(&operations::Stub::DrainInstance, q);
  const auto patience = s.o.timeout.empty() ? milliseconds{30'000} : s.timeout;
  const auto until = system_clock::now() + patience;
  while (s.o.wait && now.alive() && now.partitions() > 0) {
    if (system_clock::now() >= until)
      throw too_late{fmt::format("{} still has {} partitions after {}", q.name(), now.partitions(), span(patience.count())),
                     "warrenctl instance list shows who could take them"};
    std::this_thread::sleep_for(milliseconds{100});  // nobody tells when a partition moves
    now = get_instance(s, q.name());
  }
  s.show(now);
  s.around.err << fmt::format("warrenctl: {} takes partitions again when it is restarted\n", now.display_name());
}

void take_bundle(session& s) {
  const auto patience = s.o.timeout.empty() ? milliseconds{120'000} : s.timeout;
  const auto until = system_clock::now() + patience;
  bundle_saved taken;
  for (std::size_t asked = 0; asked < s.servers.size(); ++asked) {
    if (asked > 0) s.ask_next();
    taken = save_bundle(s.channel, s.o.instance, s.o.bundle, until);
    const auto code = taken.status.error_code();
    // Another one may be there when this one is not, or be the one that is wanted.
    if (code != grpc::StatusCode::UNAVAILABLE && code != grpc::StatusCode::FAILED_PRECONDITION) break;
  }
  if (!taken.file_error.empty()) throw usage{"cannot write " + taken.file_error};
  if (!taken.status.ok()) throw refused{taken.status};
  s.around.out << fmt::format("{} ({} KiB): tar tf shows what is in it, warren-sim --replay runs it again\n", s.o.bundle,
                              (taken.bytes + 1023) / 1024);
}

}  // namespace

void add_operations(command_line& line) {
  auto* i = line.noun("instance", "Running warrends");
  line.add(i, "list", "List instances", [](session& s) {
    s.list<operations>(&operations::Stub::ListInstances, s.listing<api::ListInstancesRequest>(), [](auto& r) { return r.mutable_instances(); });
  }, false);
  line.add(i, "get", "Show an instance, by its id or its name", [](session& s) { s.show(get_instance(s, instance_name(s))); }, true);
  line.add(i, "drain", "Have an instance give its partitions to the others; it takes some again when it is restarted", drain_instance, true)
      ->add_flag("--wait", line.o.wait, "until it has none");
  auto* p = line.noun("partition", "Units of ownership");
  line.add(p, "list", "List partitions", [](session& s) {
    s.list<operations>(&operations::Stub::ListPartitions, s.listing<api::ListPartitionsRequest>(), [](auto& r) { return r.mutable_partitions(); });
  }, false);
  line.add(p, "get", "Show a partition", [](session& s) {
    s.show(s.call<operations>(&operations::Stub::GetPartition, s.named<api::GetPartitionRequest>("partitions")));
  }, true);
  auto* a = line.noun("audit", "Who changed what");
  auto* list = line.add(a, "list", "The newest changes of the project first", [](session& s) {
    api::ListAuditEventsRequest q;
    if (!s.o.all_projects) q.set_project(s.o.project);
    q.set_page_size(std::min(s.o.limit, 1000));
    s.list<operations>(&operations::Stub::ListAuditEvents, q, [](auto& r) { return r.mutable_events(); }, s.o.limit);
  }, false);
  list->add_option("--limit", line.o.limit, "how many")->capture_default_str()->check(CLI::Range(1, 100'000));
  auto* diag = line.add("diag", "Save what an instance remembers, without secrets", take_bundle);
  diag->add_option("--instance", line.o.instance, "this one only, of those that --server names");
  diag->add_option("-o,--output", line.o.bundle, "the file, a tar")->required();
}

}  // namespace warren::ctl
