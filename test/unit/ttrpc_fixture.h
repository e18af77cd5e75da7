#pragma once

#include <sys/socket.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <source_location>
#include <sstream>
#include <string>
#include <utility>

#include "async/task.h"
#include "base/unique_fd.h"
#include "ttrpc/frame.h"
#include "ttrpc/ttrpc.pb.h"

namespace kuasar::test {

using namespace std::chrono_literals;

/// Runs one coroutine to its end on a fresh io thread. Fails the test when that takes longer than
/// 30 s, or when something is still pending afterwards: an operation that nobody ended.
inline void run_io(const std::function<Task<>()>& body) {
  asio::io_context io;
  std::exception_ptr failure;
  bool done = false;
  asio::co_spawn(io, body(), [&](std::exception_ptr thrown) {
    failure = std::move(thrown);
    done = true;
    if (failure) io.stop();
  });
  io.run_for(30s);
  if (failure) std::rethrow_exception(failure);
  REQUIRE(done);
  REQUIRE(io.stopped());
}

/// CHECKs what a coroutine returns. Never co_await inside a Catch2 macro: under g++ its argument is
/// awaited twice.
template <typename T>
Task<> expect(Task<T> what, bool truth = true,
              std::source_location where = std::source_location::current()) {
  const bool got = static_cast<bool>(co_await std::move(what));
  INFO(where.file_name() << ":" << where.line());
  CHECK(got == truth);
}

/// Waits for a condition, with a deadline.
inline Task<bool> eventually(std::function<bool()> condition) {
  const auto end = std::chrono::steady_clock::now() + 10s;
  while (!condition() && std::chrono::steady_clock::now() < end) co_await sleep_for(1ms);
  co_return condition();
}

inline std::pair<UniqueFd, UniqueFd> socket_pair() {
  int fds[2] = {-1, -1};
  REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
  return {UniqueFd(fds[0]), UniqueFd(fds[1])};
}

/// The bytes of a captured frame (data/ttrpc/README.md).
inline std::string captured(const std::string& name) {
  std::ifstream file(std::string(KUASAR_TEST_DATA) + "/ttrpc/" + name + ".hex");
  INFO(name);
  REQUIRE(file.good());
  std::string line;
  std::string bytes;
  while (std::getline(file, line)) {
    if (line.starts_with('#')) continue;
    std::istringstream words(line);
    std::string word;
    while (words >> word) bytes.push_back(static_cast<char>(std::stoi(word, nullptr, 16)));
  }
  return bytes;
}

/// Every captured frame by name, in order.
inline std::map<std::string, std::string> all_captured() {
  std::map<std::string, std::string> frames;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::string(KUASAR_TEST_DATA) + "/ttrpc")) {
    if (entry.path().extension() != ".hex") continue;
    const std::string name = entry.path().stem().string();
    frames[name] = captured(name);
  }
  REQUIRE(frames.size() > 40);
  return frames;
}

/// The frame of a unary request, made without the client.
inline std::string request_frame(std::uint32_t stream, const std::string& service,
                                 const std::string& method, const std::string& payload = {},
                                 std::int64_t timeout_nano = 0, std::uint8_t flags = 0) {
  ::ttrpc::Request request;
  request.set_service(service);
  request.set_method(method);
  request.set_payload(payload);
  request.set_timeout_nano(timeout_nano);
  return ttrpc::encode_frame(ttrpc::kTypeRequest, flags, stream, request.SerializeAsString())
      .value();
}

/// The other end of a connection in raw bytes: writes what it is told, reads frame by frame.
class RawPeer {
 public:
  explicit RawPeer(UniqueFd fd) : fd_(std::move(fd)) {}

  /// Writes all of it, as the kernel takes it; false when the connection is closed.
  Task<bool> write(std::string bytes, std::size_t piece = std::string::npos) {
    for (std::size_t at = 0; at < bytes.size();) {
      const std::size_t size = std::min(piece, bytes.size() - at);
      const ssize_t sent = ::send(fd_.get(), bytes.data() + at, size, MSG_DONTWAIT | MSG_NOSIGNAL);
      if (sent < 0 && errno != EAGAIN) co_return false;
      if (sent > 0) at += static_cast<std::size_t>(sent);
      if (sent < 0) co_await sleep_for(1ms);
    }
    co_return true;
  }

  struct Answer {
    ttrpc::FrameHeader header;
    std::string bytes;
    ::ttrpc::Response response;
  };

  /// The next frame; nothing when the connection was closed, or for 10 s nothing came.
  Task<std::optional<Answer>> read() {
    const auto end = std::chrono::steady_clock::now() + 10s;
    while (std::chrono::steady_clock::now() < end) {
      const auto frame = reader_.next();
      REQUIRE(frame);
      if (*frame) {
        Answer answer{(*frame)->header, std::string((*frame)->bytes), {}};
        answer.response.ParseFromString(std::string((*frame)->data()));
        co_return answer;
      }
      char buffer[65536];
      const ssize_t size = ::recv(fd_.get(), buffer, sizeof buffer, MSG_DONTWAIT);
      if (size == 0 || (size < 0 && errno != EAGAIN)) co_return std::nullopt;
      if (size > 0) {
        reader_.feed(std::string_view(buffer, static_cast<std::size_t>(size)));
      } else {
        co_await sleep_for(1ms);
      }
    }
    co_return std::nullopt;
  }

  int fd() const { return fd_.get(); }
  void close() { fd_.reset(); }

 private:
  UniqueFd fd_;
  ttrpc::FrameReader reader_;
};

}  // namespace kuasar::test
