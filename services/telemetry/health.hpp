// services/telemetry/health.hpp -- what this process depends on and how each part is, and a small HTTP server
// that says so: /healthz, /readyz, /metrics.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>

namespace warren::telemetry {

/// Thread-safe.
class health {
public:
  /// A dependency is known from its first set(); until every one is ok, the process is not ready.
  void set(std::string_view name, bool ok, std::string_view reason = {});
  /// Shown beside the dependencies without making the process unready ("mass_silence").
  void note(std::string_view name, std::string_view text);  ///< empty text: gone
  bool ready() const;
  /// Those of `names` that are not ok, each with its reason: "bus: not connected to NATS"; empty: all are.
  std::string wrong_with(std::initializer_list<std::string_view> names) const;
  /// {"ready":…,"dependencies":{"database":{"ok":…,"reason":"…"}},"notes":{…}}
  std::string json() const;

private:
  struct dependency {
    bool ok = false;
    std::string reason;
  };
  mutable std::mutex mutex_;
  std::map<std::string, dependency, std::less<>> dependencies_;
  std::map<std::string, std::string, std::less<>> notes_;
};

/// A page beside those that every server has.
struct http_page {
  unsigned status = 200;
  std::string content_type, body;
};

struct http_options {
  std::string address = "127.0.0.1";  ///< nothing listens beyond loopback unless asked to
  std::uint16_t port = 0;             ///< 0: any free one
  bool healthz_when_ready = false;    ///< /healthz answers 503 until `of` is ready; else 200 while the process runs
  /// Pages under /debug/, for whoever asks from this machine: called on the server's thread with path and query;
  /// nothing: there is no such page.
  std::function<std::optional<http_page>(std::string_view path, std::string_view query)> debug = {};
};

/// Answers GET and HEAD of /healthz (200 "ok" while the process runs), /readyz (200 or 503, JSON) and
/// /metrics, in one thread of its own; requests and connections are bounded in size, number and time.
class http_server {
public:
  /// `of` must outlive the server; `metrics_text` is called on the server's thread.
  /// Errors: std::runtime_error when the address cannot be listened on.
  http_server(http_options options, const health& of, std::function<std::string()> metrics_text);
  ~http_server();
  std::uint16_t port() const;

  struct impl;

private:
  std::unique_ptr<impl> impl_;
};

}  // namespace warren::telemetry
