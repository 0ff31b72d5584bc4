// services/warrenctl/connectors.cpp -- the verbs of connectors.
#include <array>
#include <memory>

#include <openssl/evp.h>
#include <openssl/pem.h>

#include "services/warrenctl/command_line.hpp"

namespace warren::ctl {

namespace {

api::Connector connector_from(const options& o, google::protobuf::FieldMask* mask) {
  api::Connector c;
  if (!o.file.empty()) c = message_of<api::Connector>(o.file);
  if (!o.connector_class.empty()) {
    c.set_connector_class(o.connector_class);
    if (mask != nullptr) mask->add_paths("connector_class");
  }
  if (!o.lease.empty()) {
    put(*c.mutable_lease_duration(), o.lease, "--lease-duration");
    if (mask != nullptr) mask->add_paths("lease_duration");
  }
  return c;
}
std::string public_key(const options& o) {
  if (o.public_key.empty() == o.key_file.empty()) throw usage{"exactly one of --public-key and --key-file is needed"};
  if (!o.public_key.empty()) return o.public_key;
  // PEM, as the agent keeps it; only its public half leaves this function.
  const auto text = read_file(o.key_file);
  const std::unique_ptr<BIO, decltype(&BIO_free)> bio{BIO_new_mem_buf(text.data(), static_cast<int>(text.size())), BIO_free};
  EVP_PKEY* read = bio ? PEM_read_bio_PrivateKey(bio.get(), nullptr, nullptr, nullptr) : nullptr;
  if (read == nullptr && bio && BIO_reset(bio.get()) == 1) read = PEM_read_bio_PUBKEY(bio.get(), nullptr, nullptr, nullptr);
  const std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> key{read, EVP_PKEY_free};
  std::array<unsigned char, 32> raw{};
  auto size = raw.size();
  if (!key || EVP_PKEY_base_id(key.get()) != EVP_PKEY_ED25519 ||
      EVP_PKEY_get_raw_public_key(key.get(), raw.data(), &size) != 1)
    throw usage{o.key_file + " is no Ed25519 key in PEM (warren-agent keygen makes one)"};
  std::string hex;
  for (const auto byte : raw) hex += fmt::format("{:02x}", byte);
  return hex;
}
void create_connector(session& s) {
  api::CreateConnectorRequest q;
  q.set_parent(s.parent());
  q.set_connector_id(s.o.name);
  *q.mutable_connector() = connector_from(s.o, nullptr);
  q.set_request_id(s.o.request_id);
  s.show(s.call<connectors>(&connectors::Stub::CreateConnector, q));
}
void update_connector(session& s) {
  api::UpdateConnectorRequest q;
  google::protobuf::FieldMask mask;
  *q.mutable_connector() = connector_from(s.o, &mask);
  if (s.o.file.empty()) *q.mutable_update_mask() = mask;
  q.mutable_connector()->set_name(s.full("connectors"));
  if (!s.o.etag.empty()) q.mutable_connector()->set_etag(s.o.etag);
  q.set_request_id(s.o.request_id);
  s.show(s.call<connectors>(&connectors::Stub::UpdateConnector, q));
}
void enrol_connector(session& s) {
  api::EnrolConnectorRequest q;
  q.set_parent(s.parent());
  q.set_connector_id(s.o.name);
  q.set_public_key(public_key(s.o));
  *q.mutable_connector() = connector_from(s.o, nullptr);
  q.set_request_id(s.o.request_id);
  const auto a = s.call<connectors>(&connectors::Stub::EnrolConnector, q);
  if (s.out_format == format::name) s.around.out << a.connector().name() << '\n';
  else if (s.out_format == format::yaml) s.around.out << to_yaml(a.enrolment());
  else s.around.out << a.enrolment_json();
  const auto& nats = a.enrolment().nats();
  if (s.around.others_may_read && s.out_format != format::name && (!nats.seed().empty() || !nats.password().empty()))
    s.around.err << "warrenctl: others may read the file that this goes to, and it holds a secret\n"
                    "hint: chmod 600 it; umask 077 before makes it so from the beginning\n";
}
void rotate_key(session& s) {
  auto q = s.named<api::RotateConnectorKeyRequest>("connectors");
  q.set_public_key(public_key(s.o));
  s.show(s.call<connectors>(&connectors::Stub::RotateConnectorKey, q));
}
void watch_connectors(session& s) {
  api::WatchConnectorsRequest q;
  q.set_parent(s.parent());
  s.watch<connectors>(&connectors::Stub::WatchConnectors, q, s.o.name.empty() ? "" : s.full("connectors"),
                      [](const api::WatchConnectorsResponse& r) { return r.connector(); });
}

/// With when its agent was last heard, which only its owner knows.
void get_connector(session& s) {
  const auto c = s.call<connectors>(&connectors::Stub::GetConnector, s.named<api::GetConnectorRequest>("connectors"));
  if (s.out_format != format::table) return s.show(c);
  auto head = s.titles<api::Connector>();
  auto cols = row(c, s.around.terminal);
  head.emplace_back("HEARD");
  cols.push_back(heard(c, s.around.terminal));
  print_table(s.around.out, head, {cols}, s.around.terminal);
}
void explain_connector(session& s) {
  s.refuse_names("why");
  show_chain(s, s.call<connectors>(&connectors::Stub::ExplainConnector, s.named<api::ExplainConnectorRequest>("connectors")));
}

void spec_of_connector(command_line& line, CLI::App* v) {
  v->add_option("--class", line.o.connector_class, "its connector class");
  v->add_option("--lease-duration", line.o.lease, "how long silence is tolerated, for example 30s");
}

}  // namespace

void add_connectors(command_line& line) {
  auto* n = line.noun("connector", "Agents beside private services");
  line.add(n, "list", "List connectors", [](session& s) {
    if (s.o.watch) return watch_connectors(s);
    s.list<connectors>(&connectors::Stub::ListConnectors, s.listing<api::ListConnectorsRequest>(), [](auto& r) { return r.mutable_connectors(); });
  }, false);
  line.add(n, "get", "Show a connector", [](session& s) {
    if (s.o.watch) return watch_connectors(s);
    get_connector(s);
  }, true);
  spec_of_connector(line, line.add(n, "create", "Create a connector", create_connector, true));
  spec_of_connector(line, line.add(n, "update", "Change what is named on the command line", update_connector, true));
  line.add(n, "delete", "Delete a connector", [](session& s) {
    s.show(s.call<connectors>(&connectors::Stub::DeleteConnector, s.named<api::DeleteConnectorRequest>("connectors")));
  }, true);
  line.add(n, "watch", "Follow connectors", watch_connectors, false)->add_option("NAME", line.o.name, "only this one");
  line.add(n, "why", "Which link between its agent and the gateways is missing", explain_connector, true);
  auto* enrol = line.add(n, "enrol", "Give a connector its key, and print what its agent needs", enrol_connector, true);
  auto* rotate = line.add(n, "rotate-key", "Replace a connector's key", rotate_key, true);
  spec_of_connector(line, enrol);
  for (auto* v : {enrol, rotate}) {
    v->add_option("--public-key", line.o.public_key, "64 hex digits");
    v->add_option("--key-file", line.o.key_file, "made by warren-agent keygen");
  }
}

}  // namespace warren::ctl
