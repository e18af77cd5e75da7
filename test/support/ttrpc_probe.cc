#include "support/ttrpc_probe.h"

#include <linux/sockios.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <system_error>

#include "ttrpc/ttrpc.pb.h"

namespace kuasar::test {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kHeaderSize = 10;
constexpr std::chrono::seconds kPatience(10);

void append_big_endian(std::string& bytes, std::uint32_t number) {
  for (int shift = 24; shift >= 0; shift -= 8) {
    bytes.push_back(static_cast<char>((number >> shift) & 0xff));
  }
}

std::uint32_t big_endian_at(const std::string& bytes, std::size_t offset) {
  std::uint32_t number = 0;
  for (std::size_t i = 0; i < 4; ++i) {
    number = (number << 8) | static_cast<unsigned char>(bytes[offset + i]);
  }
  return number;
}

int queue_length(int fd, unsigned long request) {
  int bytes = 0;
  if (::ioctl(fd, request, &bytes) != 0) {
    throw std::system_error(errno, std::generic_category(), "length of a socket's queue");
  }
  return bytes;
}

// False at the deadline.
bool wait_for(int fd, short events, Clock::time_point deadline) {
  for (;;) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now());
    pollfd poll_fd{fd, events, 0};
    const int timeout = static_cast<int>(std::max<std::chrono::milliseconds::rep>(left.count(), 0));
    const int ready = ::poll(&poll_fd, 1, timeout);
    if (ready > 0) {
      return true;
    }
    if (ready == 0 && timeout == 0) {
      return false;
    }
    if (ready < 0 && errno != EINTR) {
      throw std::system_error(errno, std::generic_category(), "poll");
    }
  }
}

}  // namespace

TtrpcProbe::TtrpcProbe(const std::filesystem::path& socket) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (socket.native().size() >= sizeof address.sun_path) {
    throw std::invalid_argument("socket path too long: " + socket.native());
  }
  std::memcpy(address.sun_path, socket.c_str(), socket.native().size() + 1);
  fd_ = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd_ < 0 || ::connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    const int error = errno;
    if (fd_ >= 0) {
      ::close(fd_);
    }
    throw std::system_error(error, std::generic_category(), "connect " + socket.native());
  }
}

TtrpcProbe::~TtrpcProbe() {
  ::close(fd_);
}

std::string TtrpcProbe::header(std::uint32_t length, std::uint32_t stream, std::uint8_t type,
                               std::uint8_t flags) {
  std::string bytes;
  append_big_endian(bytes, length);
  append_big_endian(bytes, stream);
  bytes.push_back(static_cast<char>(type));
  bytes.push_back(static_cast<char>(flags));
  return bytes;
}

std::string TtrpcProbe::frame(std::uint32_t stream, std::uint8_t type, std::string_view data,
                              std::uint8_t flags) {
  std::string bytes = header(static_cast<std::uint32_t>(data.size()), stream, type, flags);
  bytes.append(data);
  return bytes;
}

std::string TtrpcProbe::request(std::uint32_t stream, const std::string& method,
                                const google::protobuf::MessageLite& message) {
  return request(stream, std::string(kTaskService), method, message.SerializeAsString());
}

std::string TtrpcProbe::request(std::uint32_t stream, const std::string& service,
                                const std::string& method, const std::string& payload,
                                std::chrono::nanoseconds timeout) {
  ::ttrpc::Request envelope;
  envelope.set_service(service);
  envelope.set_method(method);
  envelope.set_payload(payload);
  envelope.set_timeout_nano(timeout.count());
  auto* metadata = envelope.add_metadata();
  metadata->set_key("containerd-namespace-ttrpc");
  metadata->set_value("k8s.io");
  return frame(stream, kRequest, envelope.SerializeAsString());
}

bool TtrpcProbe::send(std::string_view bytes) {
  const auto deadline = Clock::now() + kPatience;
  while (!bytes.empty()) {
    const ssize_t sent = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent > 0) {
      bytes.remove_prefix(static_cast<std::size_t>(sent));
    } else if (errno == EPIPE || errno == ECONNRESET) {
      return false;
    } else if (errno != EAGAIN && errno != EINTR) {
      throw std::system_error(errno, std::generic_category(), "send");
    } else if (!wait_for(fd_, POLLOUT, deadline)) {
      return false;
    }
  }
  return true;
}

std::size_t TtrpcProbe::send_some(std::string_view bytes) {
  std::size_t taken = 0;
  while (taken < bytes.size()) {
    const ssize_t sent =
        ::send(fd_, bytes.data() + taken, bytes.size() - taken, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent <= 0) {
      break;
    }
    taken += static_cast<std::size_t>(sent);
  }
  return taken;
}

void TtrpcProbe::shut_writing() {
  ::shutdown(fd_, SHUT_WR);
}

bool TtrpcProbe::fill(std::size_t size, Clock::time_point deadline) {
  std::array<char, 65536> chunk;
  while (received_.size() < size) {
    if (!wait_for(fd_, POLLIN, deadline)) {
      end_ = End::kDeadline;
      return false;
    }
    const ssize_t count = ::recv(fd_, chunk.data(), chunk.size(), MSG_DONTWAIT);
    if (count > 0) {
      received_.append(chunk.data(), static_cast<std::size_t>(count));
    } else if (count == 0 || errno == ECONNRESET) {
      end_ = End::kClosed;
      return false;
    } else if (errno != EAGAIN && errno != EINTR) {
      throw std::system_error(errno, std::generic_category(), "recv");
    }
  }
  return true;
}

std::optional<TtrpcProbe::Frame> TtrpcProbe::read_frame(std::chrono::milliseconds deadline) {
  const auto end = Clock::now() + deadline;
  end_ = End::kNone;
  if (!fill(kHeaderSize, end)) {
    return std::nullopt;
  }
  const std::size_t length = big_endian_at(received_, 0);
  if (!fill(kHeaderSize + length, end)) {
    return std::nullopt;
  }
  Frame frame;
  frame.stream = big_endian_at(received_, 4);
  frame.type = static_cast<std::uint8_t>(received_[8]);
  frame.flags = static_cast<std::uint8_t>(received_[9]);
  frame.data = received_.substr(kHeaderSize, length);
  received_.erase(0, kHeaderSize + length);
  return frame;
}

std::optional<TtrpcProbe::Reply> TtrpcProbe::read_reply(std::chrono::milliseconds deadline) {
  const std::optional<Frame> frame = read_frame(deadline);
  if (!frame) {
    return std::nullopt;
  }
  ::ttrpc::Response response;
  if (frame->type != kResponse || !response.ParseFromString(frame->data)) {
    throw std::runtime_error("the daemon sent a frame that is no response");
  }
  return Reply{frame->stream, response.status().code(), response.status().message(),
               response.payload()};
}

std::optional<TtrpcProbe::Reply> TtrpcProbe::reply_to(std::uint32_t stream,
                                                      std::chrono::milliseconds deadline) {
  const auto end = Clock::now() + deadline;
  for (;;) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - Clock::now());
    std::optional<Reply> reply = read_reply(left);
    if (!reply || reply->stream == stream) return reply;
    if (reply->stream > last_stream_) {
      throw std::runtime_error("a reply to stream " + std::to_string(reply->stream) +
                               ", that was never asked for");
    }
  }
}

bool TtrpcProbe::closed_within(std::chrono::milliseconds deadline) {
  const auto end = Clock::now() + deadline;
  while (fill(received_.size() + 1, end)) {
    received_.clear();
  }
  return end_ == End::kClosed;
}

TtrpcProbe::Reply TtrpcProbe::call(const std::string& method,
                                   const google::protobuf::MessageLite& message) {
  return call(method, message.SerializeAsString());
}

TtrpcProbe::Reply TtrpcProbe::call(const std::string& method, const std::string& payload) {
  const std::uint32_t stream = next_stream();
  if (!send(request(stream, std::string(kTaskService), method, payload))) {
    throw std::runtime_error(method + ": the daemon does not read");
  }
  std::optional<Reply> reply = reply_to(stream, kPatience);
  if (!reply) {
    throw std::runtime_error(method + (end_ == End::kClosed ? ": the daemon closed the connection"
                                                            : ": no reply within 10 s"));
  }
  return *std::move(reply);
}

std::uint32_t TtrpcProbe::next_stream() {
  last_stream_ = last_stream_ == 0 ? 1 : last_stream_ + 2;
  return last_stream_;
}

int TtrpcProbe::unread_by_peer() const {
  return queue_length(fd_, SIOCOUTQ);
}

int TtrpcProbe::unread() const {
  return queue_length(fd_, SIOCINQ);
}

}  // namespace kuasar::test
