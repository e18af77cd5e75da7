// Records real ttrpc traffic: a proxy between the two ends of a connection that writes every
// frame to a .hex file as the byte-exact tests read them (test/unit/data/ttrpc/README.md).
//
//   kuasar_ttrpc_capture LISTEN CONNECT DIRECTORY LABEL
//
// Accepts on the socket LISTEN, forwards to the socket CONNECT, and writes
// DIRECTORY/LABEL-<connection>-<number>-{request,response,...}.hex. Ends on a signal.

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/unique_fd.h"
#include "ttrpc/frame.h"

namespace {

using kuasar::UniqueFd;
using kuasar::ttrpc::FrameReader;

std::optional<sockaddr_un> address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) return std::nullopt;
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

UniqueFd open_socket(const std::string& path, bool listen) {
  const std::optional<sockaddr_un> address = address_of(path);
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!address || !fd) return {};
  const auto* raw = reinterpret_cast<const sockaddr*>(&*address);
  const bool ok = listen
                      ? ::bind(fd.get(), raw, sizeof *address) == 0 && ::listen(fd.get(), 64) == 0
                      : ::connect(fd.get(), raw, sizeof *address) == 0;
  if (!ok) {
    std::perror(path.c_str());
    return {};
  }
  return fd;
}

std::string hex(std::string_view bytes) {
  std::string text;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    std::array<char, 4> digits{};
    std::snprintf(digits.data(), digits.size(), "%02x", static_cast<unsigned char>(bytes[i]));
    text += digits.data();
    text += i % 32 == 31 || i + 1 == bytes.size() ? '\n' : ' ';
  }
  return text;
}

const char* type_name(std::uint8_t type) {
  switch (type) {
    case kuasar::ttrpc::kTypeRequest: return "request";
    case kuasar::ttrpc::kTypeResponse: return "response";
    case kuasar::ttrpc::kTypeData: return "data";
    default: return "unknown";
  }
}

struct Recorder {
  std::string prefix;
  int frames = 0;

  void write(const FrameReader::Frame& frame) {
    std::array<char, 16> number{};
    std::snprintf(number.data(), number.size(), "%03d", ++frames);
    std::ofstream file(prefix + "-" + number.data() + "-" + type_name(frame.header.type) + ".hex");
    file << hex(frame.bytes);
  }
};

// One direction of one connection.
struct Direction {
  int from;
  int to;
  FrameReader reader;

  // False at the end.
  bool forward(Recorder& recorder) {
    std::array<char, 65536> buffer{};
    const ssize_t size = ::read(from, buffer.data(), buffer.size());
    if (size <= 0) return false;
    reader.feed(std::string_view(buffer.data(), static_cast<std::size_t>(size)));
    while (true) {
      const auto frame = reader.next();
      if (!frame || !*frame) break;
      recorder.write(**frame);
    }
    for (ssize_t sent = 0; sent < size;) {
      const ssize_t piece =
          ::send(to, buffer.data() + sent, static_cast<std::size_t>(size - sent), MSG_NOSIGNAL);
      if (piece < 0) return false;
      sent += piece;
    }
    return true;
  }
};

struct Link {
  UniqueFd client;
  UniqueFd server;
  Recorder recorder;
  Direction requests{client.get(), server.get(), {}};
  Direction responses{server.get(), client.get(), {}};
};

int run(const std::string& listen, const std::string& connect, const std::string& prefix) {
  const UniqueFd listener = open_socket(listen, true);
  if (!listener) return 1;
  std::vector<std::unique_ptr<Link>> links;
  int connections = 0;
  while (true) {
    std::vector<pollfd> polled{{listener.get(), POLLIN, 0}};
    for (const auto& link : links) {
      polled.push_back({link->client.get(), POLLIN, 0});
      polled.push_back({link->server.get(), POLLIN, 0});
    }
    if (::poll(polled.data(), polled.size(), -1) < 0) return 1;
    for (std::size_t i = links.size(); i-- > 0;) {
      Link& link = *links[i];
      const bool open = (polled[1 + 2 * i].revents == 0 || link.requests.forward(link.recorder)) &&
                        (polled[2 + 2 * i].revents == 0 || link.responses.forward(link.recorder));
      if (!open) links.erase(links.begin() + static_cast<std::ptrdiff_t>(i));
    }
    if (polled[0].revents == 0) continue;
    UniqueFd client(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    UniqueFd server = open_socket(connect, false);
    if (!client || !server) continue;
    links.push_back(
        std::make_unique<Link>(Link{std::move(client), std::move(server),
                                    Recorder{prefix + "-" + std::to_string(++connections)}}));
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fprintf(stderr, "usage: %s LISTEN CONNECT DIRECTORY LABEL\n", argv[0]);
    return 2;
  }
  return run(argv[1], argv[2], std::string(argv[3]) + "/" + argv[4]);
}
