#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

/// What the daemon and its keeper say to each other: one message per packet of an AF_UNIX
/// SOCK_SEQPACKET connection, in host byte order, descriptors beside it by SCM_RIGHTS. A message is
/// a Header, a name, a body. Nothing here allocates: the keeper has no containers.
namespace kuasar::keeper::wire {

inline constexpr std::uint32_t kMagic = 0x5052454b;
/// Of everything but Header, kHello and kUpgrade, which are the same for ever: a daemon can always
/// ask a keeper of another version to become the one it came with.
inline constexpr std::uint16_t kVersion = 1;
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
  kReap = 11,
  kQuit = 12,
  /// The one answer to every request: its sequence; on an error errno and words as the body.
  kAnswer = 64,
  /// Told without being asked: a connection was accepted, name `<kind>/<n>`, one descriptor.
  kAccepted = 65,
  /// Before the answer to kList, one for each: HeldInfo and the descriptor; ChildInfo and a pidfd.
  kListHeld = 66,
  kListChild = 67,
};

struct Header {
  std::uint32_t magic;
  std::uint16_t version;
  std::uint16_t type;
  std::uint32_t sequence;
  std::int32_t error;
  std::uint32_t name_size;
  std::uint32_t body_size;
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

struct HeldInfo {
  std::uint32_t accepting;
};

inline constexpr std::uint32_t kEnded = 1;
inline constexpr std::uint32_t kKnown = 2;
inline constexpr std::uint32_t kLeavesOrphans = 4;

/// Body of kAdopt (pid, kLeavesOrphans; the pidfd beside it), of kListChild and of the answers to
/// kSpawn, kAdopt and kStatus. `code` is 128 + n for signal n.
struct ChildInfo {
  std::int64_t ended_at_ns;
  std::int32_t pid;
  std::int32_t code;
  std::uint32_t flags;
  std::uint32_t reserved;
};

inline constexpr std::uint32_t kNewPidNamespace = 1;
inline constexpr std::uint32_t kNewMountNamespace = 2;
inline constexpr std::uint32_t kSetFileLimit = 4;
inline constexpr std::uint32_t kSpawnLeavesOrphans = 8;

/// Body of kSpawn, before its strings, each with its zero: program, cwd, arguments, environment.
struct Spawn {
  std::uint64_t file_limit_soft;
  std::uint64_t file_limit_hard;
  std::uint32_t flags;
  std::uint32_t argc;
  std::uint32_t envc;
  std::uint32_t fd_count;
  std::int32_t child_fds[kMaxFds];
};

/// Body of kReap.
struct Reap {
  std::int32_t pid;
};

struct Message {
  Header header;
  const char* name;
  const char* body;
};

/// Printable ASCII without blanks, 1 to kMaxName bytes.
inline bool valid_name(const char* name, std::size_t size) {
  if (size == 0 || size > kMaxName) return false;
  for (std::size_t i = 0; i < size; ++i) {
    if (name[i] <= ' ' || name[i] > '~') return false;
  }
  return true;
}

/// Writes a message into `out`; its size, or 0 when it does not fit a packet.
inline std::size_t encode(char (&out)[kMaxMessage], Header header, const char* name,
                          std::size_t name_size, const void* body, std::size_t body_size) {
  if (name_size > kMaxName || body_size > kMaxMessage - sizeof header - name_size) return 0;
  header.magic = kMagic;
  header.name_size = static_cast<std::uint32_t>(name_size);
  header.body_size = static_cast<std::uint32_t>(body_size);
  std::memcpy(out, &header, sizeof header);
  if (name_size > 0) std::memcpy(out + sizeof header, name, name_size);
  if (body_size > 0) std::memcpy(out + sizeof header + name_size, body, body_size);
  return sizeof header + name_size + body_size;
}

/// The parts of a packet, pointing into it; false when it is not exactly one message.
inline bool decode(const char* bytes, std::size_t size, Message& out) {
  if (size < sizeof(Header) || size > kMaxMessage) return false;
  std::memcpy(&out.header, bytes, sizeof(Header));
  const Header& header = out.header;
  if (header.magic != kMagic || header.name_size > kMaxName || header.body_size > kMaxMessage)
    return false;
  if (sizeof header + header.name_size + header.body_size != size) return false;
  out.name = bytes + sizeof header;
  out.body = out.name + header.name_size;
  return header.name_size == 0 || valid_name(out.name, header.name_size);
}

/// A body of one fixed struct; false when it has another size.
template <typename T>
bool read_body(const Message& message, T& out) {
  if (message.header.body_size != sizeof out) return false;
  std::memcpy(&out, message.body, sizeof out);
  return true;
}

/// The strings of a kSpawn body in place: `strings` gets the arguments, null, the variables, null,
/// and has room for one more variable. False when malformed.
struct SpawnView {
  Spawn fixed;
  const char* program;
  const char* cwd;
  const char** argv;
  const char** envp;
};
inline bool decode_spawn(const char* body, std::size_t size, SpawnView& out,
                         const char* (&strings)[kMaxStrings + 4]) {
  if (size < sizeof(Spawn)) return false;
  std::memcpy(&out.fixed, body, sizeof(Spawn));
  const Spawn& fixed = out.fixed;
  if (fixed.argc == 0 || fixed.argc > kMaxStrings || fixed.envc > kMaxStrings - fixed.argc ||
      fixed.fd_count > kMaxFds)
    return false;
  for (std::uint32_t i = 0; i < fixed.fd_count; ++i) {
    if (fixed.child_fds[i] < 0 || fixed.child_fds[i] > kMaxChildFd) return false;
  }
  const char* at = body + sizeof(Spawn);
  const char* const end = body + size;
  const auto next = [&]() -> const char* {
    const void* zero = std::memchr(at, 0, static_cast<std::size_t>(end - at));
    if (zero == nullptr) return nullptr;
    const char* text = at;
    at = static_cast<const char*>(zero) + 1;
    return text;
  };
  out.program = next();
  out.cwd = out.program == nullptr ? nullptr : next();
  if (out.cwd == nullptr || *out.program == '\0') return false;
  std::size_t count = 0;
  out.argv = strings;
  for (std::uint32_t i = 0; i < fixed.argc; ++i) {
    if ((strings[count++] = next()) == nullptr) return false;
  }
  strings[count++] = nullptr;
  out.envp = strings + count;
  for (std::uint32_t i = 0; i < fixed.envc; ++i) {
    if ((strings[count++] = next()) == nullptr) return false;
  }
  strings[count] = nullptr;
  return at == end;
}

}  // namespace kuasar::keeper::wire
