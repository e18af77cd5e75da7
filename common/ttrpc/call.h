#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "async/event.h"
#include "base/call_end.h"
#include "base/error.h"

namespace google::protobuf {
class MessageLite;
}

namespace kuasar::ttrpc {

/// Key-value pairs of a request, in wire order; a key may occur more than once.
using Metadata = std::vector<std::pair<std::string, std::string>>;

/// The process at the other end of a connection; the pid alone may be another's by now. No pid:
/// unknown, also when the connection was closed before we looked.
struct PeerProcess {
  pid_t pid = 0;
  /// os::process_start_time().
  unsigned long long start_time = 0;
};

/// The other end of a connection, as a handler sees it. Shared by the connection and every call
/// that came over it; lives on the io thread.
class Peer {
 public:
  explicit Peer(std::uint64_t id, PeerProcess process = {}) : id_(id), process_(process) {}

  /// Names the connection in every process that holds it, for one boot: connection_id().
  std::uint64_t id() const { return id_; }
  const PeerProcess& process() const { return process_; }
  /// True once the connection is gone: an answer would reach nobody.
  bool closed() const { return closed_.is_set(); }
  /// Set when the connection closes.
  Event& closed_event() { return closed_; }

 private:
  std::uint64_t id_;
  PeerProcess process_;
  Event closed_;
};

/// What a handler knows about its call besides the request message.
struct CallContext {
  /// When the whole request was there.
  std::chrono::steady_clock::time_point arrived = std::chrono::steady_clock::now();
  std::string service;
  std::string method;
  Metadata metadata;
  /// When the caller stops waiting; it is answered DEADLINE_EXCEEDED then, the handler runs on.
  std::optional<std::chrono::steady_clock::time_point> deadline;
  /// True when an earlier process of this daemon consumed the request and did not answer it.
  bool redelivered = false;
  /// With `redelivered`: mark_applied() was called before.
  bool applied = false;
  /// Writes down that the call's effect, which must not happen twice, has happened. May be empty.
  std::function<void()> mark_applied;
  std::shared_ptr<Peer> peer;
  /// For an observer that wants them; usually nullptr.
  std::shared_ptr<CallNotes> notes;

  /// Value of the first pair with this key; nothing if there is none.
  std::optional<std::string_view> find(std::string_view key) const {
    for (const auto& [name, value] : metadata) {
      if (name == key) return value;
    }
    return std::nullopt;
  }
};

/// What a method answers later that waits, perhaps for days, for something to happen: `answer` is
/// asked once one of the events is set or destroyed. Nothing else of the call is kept meanwhile.
template <class T>
struct Awaited {
  std::vector<const Event*> events;
  std::function<Result<T>()> answer;
};

/// Parses the payload of a request or response; kInvalidArgument names the message type.
Result<> parse_payload(const std::string& payload, google::protobuf::MessageLite& message);
/// The bytes of a message; kResourceExhausted when they cannot fit a frame.
Result<std::string> serialize_payload(const google::protobuf::MessageLite& message);

}  // namespace kuasar::ttrpc
