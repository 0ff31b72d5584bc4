// services/hook/server.hpp -- the extension hook's gRPC server. What it answers is decided in transform; this opens and
// closes the port, counts, and writes one line per call.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "actors/core/counters.hpp"
#include "actors/core/ids.hpp"
#include "services/hook/transform.hpp"
#include "services/hook/truth.hpp"
#include "services/replica/view.hpp"

namespace warren::hook {

/// Twice the largest request (256 MiB), for what tunnels add to it: a whole cluster for one that may come as a few bytes.
/// A limit there is, as the answer is in memory as a whole.
inline constexpr std::size_t answer_bytes_max = 512 * 1024 * 1024;

struct server_config {
  std::string listen;  ///< "ip:port", or "unix:" and a path
  /// PEM files, all or none; read again when they change. What cannot be used then is warned of, and the last that could
  /// be goes on. None: plaintext, on loopback or a unix socket only.
  std::string tls_certificate, tls_key, tls_client_ca;
  namespaces projects;
  transform_settings settings;
  std::size_t answer_bytes_max = hook::answer_bytes_max;  ///< what is larger is refused, and counts as an error
  /// An answer was taken; a call ended without its answer being taken. On any thread, one call at a time.
  std::function<void(const answered_call&)> on_answered;
  std::function<void()> on_failed;
  /// The port is open, or cannot be had for the moment, and why. On a thread of the server's own.
  std::function<void(bool open, const std::string& reason)> on_state;
  /// What is wrong with the certificates, whenever that changes; empty: nothing any more. On that thread, too.
  std::function<void(const std::string& trouble)> on_certificates;
};

/// Serves once the view is warm, until close(): Envoy Gateway waits for a server that is not there, and does not repeat a
/// call that failed. A port that cannot be had is tried again every second. Thread-safe.
class server {
public:
  /// `v` and `count` outlive the server. Errors: std::invalid_argument for what can never be listened on,
  /// and for certificates that cannot be used.
  server(replica::view& v, server_config config, counters& count);
  ~server();
  server(const server&) = delete;
  server& operator=(const server&) = delete;

  /// Takes no more calls; those under way end.
  void close();
  int port() const;  ///< 0: not open, or a unix socket

private:
  struct impl;
  std::unique_ptr<impl> impl_;
};

}  // namespace warren::hook
