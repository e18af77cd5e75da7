#pragma once

#include <google/protobuf/message_lite.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

namespace kuasar::test {

/// A ttrpc client for input that no decent client sends: it writes whatever bytes it is told to,
/// counts nothing and keeps to no rule. It shares no code with common/ttrpc, so that an error made
/// there is not made here again. Blocking, for one thread; owns its connection. Every wait has a
/// deadline; system calls that fail throw std::system_error.
class TtrpcProbe {
 public:
  static constexpr std::string_view kTaskService = "containerd.task.v3.Task";

  /// Frame types of ttrpc 1.2.
  enum Type : std::uint8_t { kRequest = 1, kResponse = 2, kData = 3 };

  struct Frame {
    std::uint32_t stream = 0;
    std::uint8_t type = 0;
    std::uint8_t flags = 0;
    std::string data;
  };

  struct Reply {
    std::uint32_t stream = 0;
    /// google.rpc.Code; 0 is OK.
    int code = 0;
    std::string message;
    std::string payload;
  };

  /// What reading gave when it gave no frame.
  enum class End { kNone, kClosed, kDeadline };

  explicit TtrpcProbe(const std::filesystem::path& socket);
  ~TtrpcProbe();
  TtrpcProbe(const TtrpcProbe&) = delete;
  TtrpcProbe& operator=(const TtrpcProbe&) = delete;

  /// The ten bytes of a header; `length` need not be true.
  static std::string header(std::uint32_t length, std::uint32_t stream, std::uint8_t type,
                            std::uint8_t flags = 0);
  static std::string frame(std::uint32_t stream, std::uint8_t type, std::string_view data,
                           std::uint8_t flags = 0);
  /// A whole request frame of the Task service.
  static std::string request(std::uint32_t stream, const std::string& method,
                             const google::protobuf::MessageLite& message);
  /// `timeout` is what travels with the request; 0 is none.
  static std::string request(std::uint32_t stream, const std::string& service,
                             const std::string& method, const std::string& payload,
                             std::chrono::nanoseconds timeout = {});

  /// Sends all bytes; false when the peer closed or took nothing for 10 s.
  bool send(std::string_view bytes);
  /// Sends without waiting for the peer; returns how many bytes the kernel took.
  std::size_t send_some(std::string_view bytes);
  /// Half-close: the peer reads an end of file.
  void shut_writing();

  /// Empty when the connection was closed or the deadline was over; end() says which.
  std::optional<Frame> read_frame(std::chrono::milliseconds deadline = std::chrono::seconds(10));
  std::optional<Reply> read_reply(std::chrono::milliseconds deadline = std::chrono::seconds(10));
  /// The reply to `stream`, one of next_stream(). Those to the other streams are dropped, as
  /// containerd's client drops a second answer to an earlier call (its daemon died meanwhile).
  /// Throws std::runtime_error on a reply to a stream that was never given.
  std::optional<Reply> reply_to(std::uint32_t stream,
                                std::chrono::milliseconds deadline = std::chrono::seconds(10));
  End end() const { return end_; }
  /// Reads and drops until the peer closes; false at the deadline.
  bool closed_within(std::chrono::milliseconds deadline);

  /// A decent call on the next odd stream; throws std::runtime_error when no reply comes in 10 s.
  /// For probes that have nothing else under way, see reply_to().
  Reply call(const std::string& method, const google::protobuf::MessageLite& message);
  Reply call(const std::string& method, const std::string& payload);
  std::uint32_t next_stream();
  /// Bytes that were sent and that nobody has read yet.
  int unread_by_peer() const;
  /// Bytes that have come and that were not read here.
  int unread() const;

 private:
  bool fill(std::size_t size, std::chrono::steady_clock::time_point deadline);

  int fd_ = -1;
  std::uint32_t last_stream_ = 0;
  std::string received_;
  End end_ = End::kNone;
};

}  // namespace kuasar::test
