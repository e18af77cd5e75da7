#include "support/nri_plugin.h"

#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <map>
#include <optional>
#include <stdexcept>
#include <string_view>
#include <system_error>

#include "nri/v1alpha1/plugin.pb.h"
#include "support/ttrpc_probe.h"
#include "ttrpc/frame.h"
#include "ttrpc/ttrpc.pb.h"

namespace kuasar::test {
namespace {

namespace nri = ::nri::pkg::api::v1alpha1;

// Numbers of NRI's multiplexed connections, and its header: number and length, both big-endian
// (nri/pkg/net/multiplex).
constexpr std::uint32_t kPluginConnection = 1;
constexpr std::uint32_t kRuntimeConnection = 2;
constexpr std::size_t kHeader = 8;
constexpr int kUnknown = 2;

std::string big_endian(std::uint32_t number) {
  std::string bytes;
  for (int shift = 24; shift >= 0; shift -= 8) bytes.push_back(static_cast<char>(number >> shift));
  return bytes;
}

std::uint32_t from_big_endian(std::string_view bytes) {
  std::uint32_t number = 0;
  for (std::size_t i = 0; i < 4; ++i) number = number << 8 | static_cast<unsigned char>(bytes[i]);
  return number;
}

void send_on(int fd, std::uint32_t connection, const std::string& frame) {
  const std::string bytes =
      big_endian(connection) + big_endian(static_cast<std::uint32_t>(frame.size())) + frame;
  if (::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(bytes.size())) {
    throw std::system_error(errno, std::generic_category(), "send to containerd's NRI socket");
  }
}

// The frames of all connections, in the order in which they come.
class Frames {
 public:
  explicit Frames(int fd) : fd_(fd) {}

  struct Frame {
    std::uint32_t connection = 0;
    std::uint32_t stream = 0;
    std::uint8_t type = 0;
    std::string data;
  };

  /// Empty at the end of the connection.
  std::optional<Frame> next() {
    for (;;) {
      for (auto& [number, reader] : readers_) {
        const auto frame = reader.next();
        if (!frame) throw std::runtime_error("NRI: " + frame.error().message);
        if (!*frame) continue;
        const ttrpc::FrameReader::Frame& whole = **frame;
        return Frame{number, whole.header.stream, whole.header.type, std::string(whole.data())};
      }
      if (!take_packet()) return {};
    }
  }

 private:
  bool take_packet() {
    if (!fill(kHeader)) return false;
    const std::uint32_t connection = from_big_endian(received_);
    const std::size_t size = from_big_endian(std::string_view(received_).substr(4));
    if (!fill(kHeader + size)) return false;
    readers_[connection].feed(std::string_view(received_).substr(kHeader, size));
    received_.erase(0, kHeader + size);
    return true;
  }

  bool fill(std::size_t size) {
    char buffer[4096];
    while (received_.size() < size) {
      const ssize_t n = ::recv(fd_, buffer, sizeof buffer, 0);
      if (n <= 0) return false;
      received_.append(buffer, static_cast<std::size_t>(n));
    }
    return true;
  }

  int fd_;
  std::string received_;
  std::map<std::uint32_t, ttrpc::FrameReader> readers_;
};

std::string register_request() {
  nri::RegisterPluginRequest request;
  request.set_plugin_name("kuasar-test");
  request.set_plugin_idx("10");
  return TtrpcProbe::request(1, "nri.pkg.api.v1alpha1.Runtime", "RegisterPlugin",
                             request.SerializeAsString());
}

UniqueFd connect_to(const std::filesystem::path& socket) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (socket.native().size() >= sizeof address.sun_path) {
    throw std::invalid_argument("socket path too long: " + socket.native());
  }
  std::memcpy(address.sun_path, socket.c_str(), socket.native().size() + 1);
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd ||
      ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    throw std::system_error(errno, std::generic_category(), "connect " + socket.native());
  }
  return fd;
}

}  // namespace

NriPlugin::NriPlugin(const std::filesystem::path& socket) : socket_(connect_to(socket)) {
  send_on(socket_.get(), kRuntimeConnection, register_request());
  thread_ = std::thread([this] { serve(); });
}

NriPlugin::~NriPlugin() {
  ::shutdown(socket_.get(), SHUT_RDWR);
  thread_.join();
}

void NriPlugin::serve() {
  try {
    Frames frames(socket_.get());
    while (const auto frame = frames.next()) {
      if (frame->connection != kPluginConnection || frame->type != ttrpc::kTypeRequest) continue;
      ::ttrpc::Request request;
      if (!request.ParseFromString(frame->data)) continue;
      const std::string response = answer(request).SerializeAsString();
      send_on(socket_.get(), kPluginConnection,
              TtrpcProbe::frame(frame->stream, ttrpc::kTypeResponse, response));
    }
  } catch (const std::exception& error) {
    fmt::print(stderr, "the test's NRI plugin: {}\n", error.what());
  }
}

::ttrpc::Response NriPlugin::answer(const ::ttrpc::Request& request) {
  ::ttrpc::Response response;
  if (request.method() == "Configure") {
    nri::ConfigureResponse events;
    events.set_events(1 << (nri::RUN_POD_SANDBOX - 1));
    response.set_payload(events.SerializeAsString());
    return response;
  }
  nri::StateChangeEvent event;
  const bool runs_pod = request.method() == "StateChange" &&
                        event.ParseFromString(request.payload()) &&
                        event.event() == nri::RUN_POD_SANDBOX;
  if (!runs_pod) return response;
  ++heard_;
  if (refuse_) {
    response.mutable_status()->set_code(kUnknown);
    response.mutable_status()->set_message(kWords);
  }
  return response;
}

}  // namespace kuasar::test
