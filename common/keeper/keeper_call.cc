#include "keeper/keeper_call.h"

#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <cerrno>

#include "keeper/packet.h"
#include "os/pidfd.h"

namespace kuasar::keeper {
namespace {

constexpr int kSendMs = 5000;
constexpr int kDeathMs = 5000;

bool wait_for(int fd, short events, int timeout_ms) {
  pollfd entry{fd, events, 0};
  int ready = 0;
  while ((ready = ::poll(&entry, 1, timeout_ms)) < 0 && errno == EINTR) {
  }
  return ready == 1;
}

}  // namespace

Result<Connection> Connection::open(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) {
    return fail(Code::kInvalidArgument,
                "the path of the keeper's socket is longer than {} bytes: {}",
                sizeof address.sun_path - 1, path);
  }
  path.copy(address.sun_path, path.size());
  Connection made;
  made.fd_.reset(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!made.fd_) return fail_errno("socket for", path);
  if (::connect(made.fd_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    return fail_errno("connect to the keeper at", path);
  }
  return made;
}

bool Connection::identify(pid_t pid) {
  Result<UniqueFd> pidfd = os::pidfd_open(pid);
  // Still connected, so it is still the one that said so.
  if (!pidfd || wait_for(fd_.get(), POLLRDHUP, 0)) return false;
  pidfd_ = std::move(*pidfd);
  return true;
}

bool Connection::send(wire::Type type, std::uint32_t sequence, std::string_view name,
                      std::string_view body, std::span<const int> fds) const {
  static char packet[wire::kMaxMessage];
  const wire::Header header{.type = type, .sequence = sequence};
  const std::size_t size = wire::encode(packet, header, name, body);
  for (;;) {
    if (send_packet(fd_.get(), packet, size, fds.data(), fds.size())) return true;
    if (errno == EINTR) continue;
    if (errno != EAGAIN || !wait_for(fd_.get(), POLLOUT, kSendMs)) return false;
  }
}

Connection::Read Connection::receive(Incoming& message, std::chrono::milliseconds timeout) const {
  static char bytes[wire::kMaxMessage];
  if (!wait_for(fd_.get(), POLLIN, static_cast<int>(timeout.count()))) return Read::kNothing;
  const Packet packet = receive_packet(fd_.get(), bytes, sizeof bytes);
  if (packet.size < 0 && (errno == EAGAIN || errno == EINTR)) return Read::kNothing;
  message.fds.clear();
  for (int i = 0; i < packet.fd_count; ++i) message.fds.emplace_back(packet.fds[i]);
  wire::Message parts{};
  if (packet.size <= 0 || !wire::decode(bytes, static_cast<std::size_t>(packet.size), parts)) {
    return Read::kDead;
  }
  message.header = parts.header;
  message.name = parts.name;
  message.body = parts.body;
  return Read::kMessage;
}

bool Connection::end(int signal) const {
  if (!pidfd_) return true;
  (void)os::pidfd_signal(pidfd_.get(), signal);
  const bool dead = wait_for(pidfd_.get(), POLLIN, kDeathMs);
  siginfo_t info{};
  ::waitid(static_cast<idtype_t>(3 /* P_PIDFD */), static_cast<id_t>(pidfd_.get()), &info,
           WEXITED | WNOHANG);
  return dead;
}

Result<std::string> encode_spawn(SpawnArguments arguments) {
  if (arguments.argv.size() + arguments.env.size() > wire::kMaxStrings) {
    return fail(Code::kInvalidArgument, "{} has more than {} arguments and variables",
                arguments.program, wire::kMaxStrings);
  }
  arguments.fixed.argc = static_cast<std::uint32_t>(arguments.argv.size());
  arguments.fixed.envc = static_cast<std::uint32_t>(arguments.env.size());
  std::string body(bytes_of(arguments.fixed));
  const auto add = [&](const std::string& text) { body.append(text.c_str(), text.size() + 1); };
  add(arguments.program);
  add(arguments.cwd);
  for (const std::string& argument : arguments.argv) add(argument);
  for (const std::string& variable : arguments.env) add(variable);
  if (body.size() > wire::kMaxMessage - sizeof(wire::Header) - wire::kMaxName) {
    return fail(Code::kInvalidArgument, "the arguments and variables of {} take {} bytes, too many",
                arguments.program, body.size());
  }
  return body;
}

}  // namespace kuasar::keeper
