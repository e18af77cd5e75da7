#include "daemon/metrics_server.h"

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <boost/asio/buffer.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/write.hpp>
#include <cerrno>
#include <charconv>
#include <string_view>
#include <utility>

#include "base/log.h"

namespace kuasar::daemon {
namespace {

using namespace std::chrono_literals;

constexpr std::size_t kMaxRequest = 8192;
constexpr std::size_t kMaxConnections = 16;
constexpr auto kAcceptPause = 100ms;

std::string response(std::string_view status, std::string_view type, std::string_view body,
                     std::string_view more = {}) {
  return fmt::format(
      "HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n{}\r\n{}",
      status, type, body.size(), more, body);
}

std::string refusal(std::string_view status, std::string_view words, std::string_view more = {}) {
  return response(status, "text/plain; charset=utf-8", fmt::format("{}\n", words), more);
}

Result<UniqueFd> listen_on_loopback(const MetricsAddress& address) {
  const int family = address.v6 ? AF_INET6 : AF_INET;
  const std::string where = fmt::format("{}:{}", address.v6 ? "[::1]" : "127.0.0.1", address.port);
  UniqueFd fd(::socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return fail_errno("create a socket for", where);
  const int on = 1;
  ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  sockaddr_in6 v6{};
  v6.sin6_family = AF_INET6;
  v6.sin6_addr = in6addr_loopback;
  v6.sin6_port = htons(address.port);
  sockaddr_in v4{};
  v4.sin_family = AF_INET;
  v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  v4.sin_port = htons(address.port);
  const auto* name =
      address.v6 ? reinterpret_cast<const sockaddr*>(&v6) : reinterpret_cast<const sockaddr*>(&v4);
  const socklen_t size = address.v6 ? sizeof v6 : sizeof v4;
  if (::bind(fd.get(), name, size) != 0) return fail_errno("bind", where);
  if (::listen(fd.get(), static_cast<int>(kMaxConnections)) != 0) {
    return fail_errno("listen on", where);
  }
  return fd;
}

}  // namespace

Result<std::optional<MetricsAddress>> parse_metrics_address(const std::string& text) {
  MetricsAddress address;
  if (text == "off") return std::nullopt;
  if (text.starts_with('/') && text.find('\0') == std::string::npos) {
    address.path = text;
    return address;
  }
  const std::size_t colon = text.rfind(':');
  const std::string host = text.substr(0, colon);
  const std::string_view digits =
      colon == std::string::npos ? std::string_view() : std::string_view(text).substr(colon + 1);
  address.v6 = host == "[::1]";
  const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), address.port);
  const bool port = !digits.empty() && parsed.ec == std::errc{} &&
                    parsed.ptr == digits.data() + digits.size() && address.port != 0;
  if (port && (address.v6 || host == "127.0.0.1")) return address;
  if (port) {
    return fail(Code::kInvalidArgument,
                "must be on the loopback, 127.0.0.1 or [::1], for anybody could read it on \"{}\"; "
                "let something that knows its users pass it on",
                host);
  }
  return fail(Code::kInvalidArgument,
              "must be \"off\", an absolute path, \"127.0.0.1:PORT\" or \"[::1]:PORT\", not \"{}\"",
              text);
}

struct MetricsServer::Connection {
  Connection(asio::any_io_executor executor, UniqueFd fd)
      : socket(executor, fd.release()), deadline(executor) {}
  asio::posix::stream_descriptor socket;
  asio::steady_timer deadline;
  bool late = false;
  /// The request has come.
  bool asked = false;
};

MetricsServer::MetricsServer(asio::any_io_executor executor, Text text,
                             std::chrono::milliseconds timeout)
    : executor_(executor),
      text_(std::move(text)),
      timeout_(timeout),
      connections_(executor),
      accepting_(executor) {}

Result<> MetricsServer::begin(const MetricsAddress& address) {
  if (address.path.empty()) {
    TRY(listening_, listen_on_loopback(address));
  } else {
    TRY(Listener listener, Listener::bind(address.path));
    file_.emplace(std::move(listener));
    listening_ = file_->take_fd();
  }
  accepting_.spawn(accept_loop());
  return {};
}

Task<> MetricsServer::stop() {
  stopping_.set();
  if (file_) file_->remove_file();
  accepting_.cancel();
  co_await accepting_.join();
  connections_.cancel();
  co_await connections_.join();
}

Task<> MetricsServer::accept_loop() {
  asio::posix::stream_descriptor listener(executor_, listening_.release());
  while (!stopping_.is_set()) {
    boost::system::error_code ec;
    co_await listener.async_wait(asio::posix::stream_descriptor::wait_read, as_result(ec));
    if (stopping_.is_set()) break;
    UniqueFd fd(
        ::accept4(listener.native_handle(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!fd) {
      if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) {
        co_await stopping_.wait_for(kAcceptPause);
      }
      continue;
    }
    make_room();
    auto connection = std::make_shared<Connection>(executor_, std::move(fd));
    silent_.push_back(connection);
    connections_.spawn(serve(std::move(connection)));
  }
}

// Whoever connects and asks for nothing must not keep a scrape out.
void MetricsServer::make_room() {
  std::erase_if(silent_, [](const auto& weak) {
    const auto connection = weak.lock();
    return !connection || connection->asked;
  });
  if (silent_.size() < kMaxConnections) return;
  if (const auto oldest = silent_.front().lock()) {
    oldest->late = true;
    oldest->socket.cancel();
  }
  silent_.pop_front();
}

Task<> MetricsServer::serve(std::shared_ptr<Connection> connection) {
  connection->deadline.expires_after(timeout_);
  connection->deadline.async_wait(
      [weak = std::weak_ptr<Connection>(connection)](const boost::system::error_code& ec) {
        const auto late = weak.lock();
        if (ec || !late) return;
        late->late = true;
        late->socket.cancel();
      });
  std::string request;
  boost::system::error_code ec;
  while (!ec && !connection->late && request.size() <= kMaxRequest &&
         request.find("\r\n\r\n") == std::string::npos) {
    char buffer[1024];
    const std::size_t size =
        co_await connection->socket.async_read_some(asio::buffer(buffer), as_result(ec));
    request.append(buffer, size);
  }
  connection->asked = true;
  // A late or a gone one gets nothing: it would not be there to read it.
  if (!ec && !connection->late) {
    const std::string reply = answer(request);
    co_await asio::async_write(connection->socket, asio::buffer(reply), as_result(ec));
    // What it has sent beyond would make our close a reset, which takes the answer away.
    ::shutdown(connection->socket.native_handle(), SHUT_WR);
    while (!ec && !connection->late) {
      char rest[1024];
      co_await connection->socket.async_read_some(asio::buffer(rest), as_result(ec));
    }
  }
  connection->deadline.cancel();
}

std::string MetricsServer::answer(const std::string& request) const {
  const std::size_t end = request.find("\r\n");
  if (request.find("\r\n\r\n") == std::string::npos) {
    return refusal("431 Request Header Fields Too Large", "at most 8 KiB");
  }
  const std::string_view line = std::string_view(request).substr(0, end);
  const std::size_t first = line.find(' ');
  const std::size_t last = line.rfind(' ');
  if (first == std::string_view::npos || last <= first ||
      !line.substr(last).starts_with(" HTTP/1."))
    return refusal("400 Bad Request", "expected \"GET /metrics HTTP/1.1\"");
  const std::string_view method = line.substr(0, first);
  std::string_view target = line.substr(first + 1, last - first - 1);
  target = target.substr(0, target.find('?'));
  if (target != "/metrics") return refusal("404 Not Found", "only /metrics is here");
  if (method != "GET") return refusal("405 Method Not Allowed", "only GET", "Allow: GET\r\n");
  return response("200 OK", "text/plain; version=0.0.4; charset=utf-8", text_());
}

}  // namespace kuasar::daemon
