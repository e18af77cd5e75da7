#include "support/stream_client.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <boost/json/parse.hpp>
#include <boost/json/value_to.hpp>
#include <cerrno>
#include <cstring>
#include <stdexcept>

namespace kuasar::test {
namespace {

// Channels of v4.channel.k8s.io.
constexpr char kStdin = 0;
constexpr char kStdout = 1;
constexpr char kStderr = 2;
constexpr char kStatus = 3;
constexpr char kResize = 4;

constexpr int kContinuation = 0;
constexpr int kBinary = 2;
constexpr int kClose = 8;

void send_all(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) throw std::runtime_error(fmt::format("send: {}", std::strerror(errno)));
    bytes.remove_prefix(static_cast<std::size_t>(sent));
  }
}

}  // namespace

StreamClient::StreamClient(const std::string& url) {
  constexpr std::string_view kScheme = "http://";
  const std::size_t slash = url.find('/', kScheme.size());
  const std::size_t colon = url.find(':', kScheme.size());
  if (!url.starts_with(kScheme) || slash == url.npos || colon > slash) {
    throw std::runtime_error("not the URL of a stream: " + url);
  }
  sockaddr_in address{};
  address.sin_family = AF_INET;
  const std::string host = url.substr(kScheme.size(), colon - kScheme.size());
  address.sin_port =
      htons(static_cast<std::uint16_t>(std::stoi(url.substr(colon + 1, slash - colon - 1))));
  if (::inet_pton(AF_INET, host.c_str(), &address.sin_addr) != 1) {
    throw std::runtime_error("not an IPv4 address: " + url);
  }
  socket_ = UniqueFd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (::connect(socket_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    throw std::runtime_error(fmt::format("connect to {}: {}", url, std::strerror(errno)));
  }
  send_all(socket_.get(), fmt::format("GET {} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\n"
                                      "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                                      "Sec-WebSocket-Key: a3Vhc2FyLXRlc3Qta2V5IQ==\r\n"
                                      "Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n",
                                      url.substr(slash), host));
  std::size_t end = 0;
  while ((end = input_.find("\r\n\r\n")) == input_.npos) {
    pollfd readable{socket_.get(), POLLIN, 0};
    char byte = 0;
    // Byte by byte: what follows the head are frames.
    if (::poll(&readable, 1, 20'000) <= 0 || ::recv(socket_.get(), &byte, 1, 0) != 1) {
      throw std::runtime_error("no answer to the WebSocket handshake: " + input_);
    }
    input_ += byte;
  }
  if (!input_.starts_with("HTTP/1.1 101")) throw std::runtime_error("refused: " + input_);
  input_.clear();
}

// Politely: what was typed before must arrive.
StreamClient::~StreamClient() {
  try {
    if (!ended_) send_frame(kClose, {});
  } catch (const std::exception&) {
    // The server was faster.
  }
  ::shutdown(socket_.get(), SHUT_WR);
}

void StreamClient::send_frame(int opcode, std::string_view payload) {
  std::string frame;
  frame += static_cast<char>(0x80 | opcode);
  // A client's frames are masked; with a key of zeros the payload stays as it is.
  if (payload.size() < 126) {
    frame += static_cast<char>(0x80 | payload.size());
  } else {
    frame += static_cast<char>(0x80 | 127);
    for (int shift = 56; shift >= 0; shift -= 8) {
      frame += static_cast<char>(static_cast<std::uint64_t>(payload.size()) >> shift);
    }
  }
  frame.append(4, '\0');
  frame += payload;
  send_all(socket_.get(), frame);
}

void StreamClient::send_message(char channel, std::string_view payload) {
  send_frame(kBinary, std::string(1, channel) + std::string(payload));
}

void StreamClient::type(std::string_view bytes) {
  constexpr std::size_t kPiece = 32 << 10;
  for (; !bytes.empty(); bytes.remove_prefix(std::min(kPiece, bytes.size()))) {
    send_message(kStdin, bytes.substr(0, kPiece));
    // What comes back meanwhile must not fill up the connection.
    while (receive(std::chrono::milliseconds(0))) {
    }
  }
}

void StreamClient::resize(int width, int height) {
  send_message(kResize, fmt::format("{{\"Width\":{},\"Height\":{}}}", width, height));
}

bool StreamClient::receive(std::chrono::milliseconds wait) {
  pollfd readable{socket_.get(), POLLIN, 0};
  if (::poll(&readable, 1, static_cast<int>(wait.count())) <= 0) return false;
  char buffer[65536];
  const ssize_t got = ::recv(socket_.get(), buffer, sizeof buffer, 0);
  if (got <= 0) {
    ended_ = true;
    return false;
  }
  input_.append(buffer, static_cast<std::size_t>(got));
  while (take_frame()) {
  }
  return true;
}

bool StreamClient::take_frame() {
  if (input_.size() < 2) return false;
  const auto byte = [this](std::size_t at) { return static_cast<unsigned char>(input_[at]); };
  std::size_t head = 2;
  std::uint64_t size = byte(1) & 0x7F;
  const std::size_t more = size == 126 ? 2 : size == 127 ? 8 : 0;
  if (input_.size() < head + more) return false;
  if (more > 0) size = 0;
  for (std::size_t i = 0; i < more; ++i) size = size << 8 | byte(head + i);
  head += more;
  if (input_.size() < head + size) return false;
  const bool last = (byte(0) & 0x80) != 0;
  const int opcode = byte(0) & 0x0F;
  message_.append(input_, head, size);
  input_.erase(0, head + size);
  if (!last) return true;
  const std::string whole = std::move(message_);
  message_.clear();
  handle(opcode, whole);
  return true;
}

void StreamClient::handle(int opcode, std::string_view payload) {
  if (opcode == kClose) ended_ = true;
  if ((opcode != kBinary && opcode != kContinuation) || payload.empty()) return;
  const std::string_view text = payload.substr(1);
  switch (payload.front()) {
    case kStdout: out_ += text; break;
    case kStderr: err_ += text; break;
    case kStatus: status_ += text; break;
    default: break;
  }
}

bool StreamClient::await(std::string_view text, std::chrono::seconds limit) {
  const auto end = std::chrono::steady_clock::now() + limit;
  while (out_.find(text) == out_.npos) {
    if (ended_ || std::chrono::steady_clock::now() >= end) return false;
    receive(std::chrono::milliseconds(100));
  }
  return true;
}

bool StreamClient::await_end(std::chrono::seconds limit) {
  const auto end = std::chrono::steady_clock::now() + limit;
  while (!ended_) {
    if (std::chrono::steady_clock::now() >= end) return false;
    receive(std::chrono::milliseconds(100));
  }
  return true;
}

int StreamClient::exit_code() const {
  boost::system::error_code ec;
  const boost::json::value status = boost::json::parse(status_, ec);
  if (ec || !status.is_object()) return -1;
  const boost::json::value* word = status.get_object().if_contains("status");
  if (word != nullptr && *word == "Success") return 0;
  const boost::json::value* details = status.get_object().if_contains("details");
  if (details == nullptr || !details->is_object()) return -1;
  const boost::json::value* causes = details->get_object().if_contains("causes");
  if (causes == nullptr || !causes->is_array()) return -1;
  for (const boost::json::value& cause : causes->get_array()) {
    const boost::json::value* message = cause.as_object().if_contains("message");
    if (message != nullptr) return std::stoi(boost::json::value_to<std::string>(*message));
  }
  return -1;
}

}  // namespace kuasar::test
