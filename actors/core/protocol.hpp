// actors/core/protocol.hpp -- what agents and owners compute alike: signatures, digests, tokens. Pure: no
// CAF, no NATS, no I/O, no random numbers.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "warren/bus/v1/bus.pb.h"

namespace warren::protocol {

namespace busv1 = warren::bus::v1;

/// The bytes that an agent signs in its second hello: all fields of `hello` but the signature, each with
/// its length, after the words "warren-hello-v1" and the agent's name.
std::string hello_to_sign(std::string_view project, std::string_view kind, std::string_view name,
                          const busv1::HelloRequest& hello);

/// 32 hex digits that are equal exactly when both sides have the same addressing and target states. The
/// order of addresses and targets does not matter, nor how an address is spelled; of a tunnel generation's
/// rules the worst state counts, one that is Unknown throughout is as good as absent, and messages do not count.
std::string report_digest(const busv1::Addressing& addressing, const std::vector<busv1::TargetState>& targets);
std::string report_digest(const busv1::Addressing& addressing,
                          const google::protobuf::RepeatedPtrField<busv1::TargetState>& targets);

/// The worse of two target states: "Unreachable", then "Unknown", then "Reachable".
std::string_view worse_target_state(std::string_view a, std::string_view b);

/// "ip:port" or "[ip6]:port" in the one spelling that is stored; nullopt: neither.
std::optional<std::string> canonical_address(std::string_view address);

/// DNS-1123: 1 to 63 of a-z, 0-9 and '-', neither first nor last.
inline constexpr std::string_view label_rule = "must be 1 to 63 of a-z, 0-9 and '-', with '-' neither first nor last";
bool is_label(std::string_view text);
/// Well-formed UTF-8 (RFC 3629) without control characters.
bool is_printable_utf8(std::string_view text);

std::string hex(std::string_view bytes);                          ///< lower case
std::optional<std::string> unhex(std::string_view lower_case_hex);
bool is_public_key_hex(std::string_view text);                    ///< 64 lower-case hex digits
/// A point of low order: anybody can sign for such a key. False also for what is no key.
bool is_low_order_key_hex(std::string_view text);
std::string sha256(std::string_view bytes);                       ///< 32 bytes
std::string sha256_hex(std::string_view bytes);

/// Ed25519 (RFC 8032). False also for a malformed key or signature.
bool ed25519_verify(std::string_view public_key_hex, std::string_view message, std::string_view signature);

/// Takes the same time wherever they differ; of unequal length: false at once.
bool equal_constant_time(std::string_view a, std::string_view b);

}  // namespace warren::protocol
