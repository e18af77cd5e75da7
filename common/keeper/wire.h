#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "os/clone_child.h"

/// What the daemon and its keeper say to each other: one message per packet of an AF_UNIX
/// SOCK_SEQPACKET connection, in host byte order, descriptors beside it by SCM_RIGHTS. A message is
/// a Header, a name, a body. Nothing here allocates: the keeper has no containers.
namespace kuasar::keeper::wire {

inline constexpr std::uint32_t kMagic = 0x5052454b;
/// Of everything but Header, kHello and kUpgrade, which are the same for ever: a daemon can always
/// ask a keeper of another version to become the one it came with.
inline constexpr std::uint16_t kVersion = 2;
inline constexpr std::size_t kMaxMessage = 64 * 1024;
inline constexpr std::size_t kMaxName = 319;
inline constexpr std::size_t kMaxFds = 16;
/// Arguments and variables of a process together.
inline constexpr std::size_t kMaxStrings = 2000;
inline constexpr std::int32_t kMaxChildFd = 255;
/// A listening socket that is accepted on is held under this prefix and its kind.
inline constexpr char kListenPrefix[] = "listen/";
/// In the environment of every child: what a lost SPAWN answer is found by.
inline constexpr char kKeyVariable[] = "KUASAR_SPAWN_KEY=";

enum Type : std::uint16_t {
  kHello = 1,
  kUpgrade = 2,
  kAccept = 3,
  kHold = 4,
  kDrop = 5,
  kList = 6,
  kSpawn = 7,
  kAdopt = 8,
  kStatus = 9,
  kAck = 10,
  /// The one answer to every request: its sequence; on an error errno and words as the body.
  kAnswer = 64,
  /// Something is held: its name, Info, and the descriptor. One for each before the answer to
  /// kList; without being asked for a connection that was accepted, whose name is `<kind>/<n>`.
  kHeld = 65,
};

struct Header {
  std::uint32_t magic = kMagic;
  std::uint16_t version = kVersion;
  std::uint16_t type = 0;
  std::uint32_t sequence = 0;
  std::int32_t error = 0;
  std::uint32_t name_size = 0;
  std::uint32_t body_size = 0;
};
static_assert(sizeof(Header) == 24);

/// Body of kHello. The next connection is numbered at least so.
struct Hello {
  std::uint64_t next_connection;
};

/// Body of the answer to kHello; its name is the keeper's version.
struct HelloAnswer {
  std::uint64_t mount_device;
  std::uint64_t mount_inode;
  std::int32_t pid;
  std::uint32_t reserved;
};

inline constexpr std::uint32_t kEnded = 1;
inline constexpr std::uint32_t kKnown = 2;
inline constexpr std::uint32_t kLeavesOrphans = 4;
inline constexpr std::uint32_t kAccepting = 8;

/// What is held beside the descriptor. Body of kHeld, of kAdopt (pid, kLeavesOrphans; the pidfd
/// beside it) and of the answers to kSpawn, kAdopt and kStatus. `pid` is 0 for what is no child,
/// `code` is 128 + n for signal n.
struct Info {
  std::int64_t ended_at_ns = 0;
  std::int32_t pid = 0;
  std::int32_t code = 0;
  std::uint32_t flags = 0;
  std::uint32_t reserved = 0;
};

inline constexpr std::uint32_t kNewPidNamespace = 1;
inline constexpr std::uint32_t kNewMountNamespace = 2;

/// Body of kSpawn, before its strings, each with its zero: program, cwd, arguments, environment.
/// kLeavesOrphans is one of its flags, too.
struct Spawn {
  std::uint64_t file_limit_soft;
  std::uint64_t file_limit_hard;
  std::uint32_t flags;
  std::uint32_t argc;
  std::uint32_t envc;
  std::uint32_t fd_count;
  std::int32_t child_fds[kMaxFds];
};

struct Message {
  Header header;
  std::string_view name;
  std::string_view body;
};

/// Bytes of a fixed body.
template <typename T>
std::string_view bytes_of(const T& body) {
  return {reinterpret_cast<const char*>(&body), sizeof body};
}

/// Printable ASCII without blanks, 1 to kMaxName bytes.
inline bool valid_name(std::string_view name) {
  if (name.empty() || name.size() > kMaxName) return false;
  for (const char c : name) {
    if (c <= ' ' || c > '~') return false;
  }
  return true;
}

/// A listening socket's name: a connection's has 20 digits and a '/' in place of the prefix.
inline bool valid_listener(std::string_view name) {
  return name.starts_with(kListenPrefix) && name.size() <= kMaxName - 21 + sizeof kListenPrefix - 1;
}

/// Writes a message into `out`; its size, or 0 when it does not fit a packet.
inline std::size_t encode(char (&out)[kMaxMessage], Header header, std::string_view name,
                          std::string_view body) {
  if (name.size() > kMaxName || body.size() > kMaxMessage - sizeof header - name.size()) return 0;
  header.name_size = static_cast<std::uint32_t>(name.size());
  header.body_size = static_cast<std::uint32_t>(body.size());
  char* at = out;
  for (const std::string_view part : {bytes_of(header), name, body}) {
    if (!part.empty()) std::memcpy(at, part.data(), part.size());
    at += part.size();
  }
  return static_cast<std::size_t>(at - out);
}

/// The parts of a packet, pointing into it; false when it is not exactly one message.
inline bool decode(const char* bytes, std::size_t size, Message& out) {
  if (size < sizeof(Header) || size > kMaxMessage) return false;
  std::memcpy(&out.header, bytes, sizeof(Header));
  const Header& header = out.header;
  if (header.magic != kMagic || header.name_size > kMaxName || header.body_size > kMaxMessage)
    return false;
  if (sizeof header + header.name_size + header.body_size != size) return false;
  out.name = {bytes + sizeof header, header.name_size};
  out.body = {bytes + sizeof header + header.name_size, header.body_size};
  return out.name.empty() || valid_name(out.name);
}

/// A body of one fixed struct; false when it has another size.
template <typename T>
bool read_body(const Message& message, T& out) {
  if (message.body.size() != sizeof out) return false;
  std::memcpy(&out, message.body.data(), sizeof out);
  return true;
}

/// A kSpawn request as clone_child() takes it; points into the request and into itself.
struct SpawnPlan {
  os::ChildPlan child;
  rlimit file_limit;
  std::uint32_t flags;
  const char* strings[kMaxStrings + 2];
};

/// False when the body is malformed or names another number of descriptors than came with it.
inline bool decode_spawn(std::string_view body, const int* fds, int fd_count, SpawnPlan& out) {
  Spawn fixed;
  if (body.size() < sizeof fixed) return false;
  std::memcpy(&fixed, body.data(), sizeof fixed);
  if (fixed.argc == 0 || fixed.argc > kMaxStrings || fixed.envc > kMaxStrings - fixed.argc ||
      fixed.fd_count > kMaxFds || static_cast<int>(fixed.fd_count) != fd_count)
    return false;
  out.child = os::ChildPlan{};
  out.child.fd_count = fd_count;
  for (int i = 0; i < fd_count; ++i) {
    if (fixed.child_fds[i] < 0 || fixed.child_fds[i] > kMaxChildFd) return false;
    out.child.fds[i] = {fds[i], fixed.child_fds[i]};
  }
  const char* at = body.data() + sizeof fixed;
  const char* const end = body.data() + body.size();
  const auto next = [&]() -> const char* {
    const void* zero = std::memchr(at, 0, static_cast<std::size_t>(end - at));
    if (zero == nullptr) return nullptr;
    const char* text = at;
    at = static_cast<const char*>(zero) + 1;
    return text;
  };
  const char** to = out.strings;
  const auto take = [&](std::uint32_t count) {
    while (count-- > 0) {
      if ((*to++ = next()) == nullptr) return false;
    }
    *to++ = nullptr;
    return true;
  };
  const char* program = next();
  const char* cwd = program == nullptr ? nullptr : next();
  if (cwd == nullptr || *program == '\0' || !take(fixed.argc) || !take(fixed.envc) || at != end)
    return false;
  out.child.file = program;
  out.child.argv = const_cast<char* const*>(out.strings);
  out.child.envp = out.child.argv + fixed.argc + 1;
  if (*cwd != '\0') out.child.cwd = cwd;
  out.child.new_pid_namespace = (fixed.flags & kNewPidNamespace) != 0;
  out.child.new_mount_namespace = (fixed.flags & kNewMountNamespace) != 0;
  out.file_limit = {fixed.file_limit_soft, fixed.file_limit_hard};
  out.child.file_limit = &out.file_limit;
  out.flags = fixed.flags;
  return true;
}

}  // namespace kuasar::keeper::wire
