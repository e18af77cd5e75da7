#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/unique_fd.h"

namespace kuasar::test {

/// The client end of a `crictl exec` or `crictl attach`: a WebSocket (RFC 6455) that speaks
/// Kubernetes' v4.channel.k8s.io, where the first byte of a message names its channel. Blocking,
/// used from one thread; what cannot be served throws std::runtime_error with the server's words.
class StreamClient {
 public:
  /// Connects to a URL as CRI's Exec and Attach answer it.
  explicit StreamClient(const std::string& url);
  /// Hangs up.
  ~StreamClient();
  StreamClient(const StreamClient&) = delete;
  StreamClient& operator=(const StreamClient&) = delete;

  void type(std::string_view bytes);
  void resize(int width, int height);

  /// Everything that has come so far.
  const std::string& out() const { return out_; }
  const std::string& err() const { return err_; }
  /// Reads until the output contains `text`; false when that does not happen in time.
  bool await(std::string_view text, std::chrono::seconds limit = std::chrono::seconds(20));
  /// Reads until the server has hung up; false when that does not happen in time.
  bool await_end(std::chrono::seconds limit = std::chrono::seconds(20));
  /// The exit code that the server told at the end; -1: none.
  int exit_code() const;

 private:
  void send_frame(int opcode, std::string_view payload);
  void send_message(char channel, std::string_view payload);
  /// One read from the socket; false at its end or after `wait`.
  bool receive(std::chrono::milliseconds wait);
  bool take_frame();
  void handle(int opcode, std::string_view payload);

  UniqueFd socket_;
  std::string input_;
  std::string message_;
  std::string out_;
  std::string err_;
  std::string status_;
  bool ended_ = false;
};

}  // namespace kuasar::test
