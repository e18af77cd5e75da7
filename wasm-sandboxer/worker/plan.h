#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// What the wasm sandboxer and its zygotes (kuasar-wasm-worker) say to each other. The worker runs
// on the C library of its engine: nothing here needs more than the standard library.
//
// A zygote is started with the one end of a SOCK_SEQPACKET pair as descriptor 3. Its first message
// is a line of text: "R" when the engine is loaded, else "E" and why not. Then every message of the
// daemon is a Request with descriptors beside it, and is answered by an Answer. The end of the
// connection is the end of the zygote.
//
// The descriptors of a request: a memfd with the Plan, the child's control socket, and then what
// the Plan names by index. The child says "R" on its control socket when it waits to be started,
// else "E" and why it ends; one byte starts it. One that is held waits for another byte before all.
// With a cache of native code "R" is followed by a Readiness; a child whose module is not in it
// keeps the file open as kModuleFd until it is started. One that compiles says "R" at its end.
//
// A child that becomes the zygote of one module (Plan::zygote_of) says "R" when it has loaded that,
// and its control socket is what descriptor 3 is to the zygote of an engine from then on. Its
// children say "M" where their module is another one.

namespace kuasar::wasm {

inline constexpr int kZygoteSocket = 3;
/// In a child that waits to be started.
inline constexpr int kModuleFd = 5;
/// Of descriptors beside one message (SCM_MAX_FD of the kernel is 253).
inline constexpr std::size_t kMaxFds = 250;
inline constexpr std::size_t kPlanFd = 0;
inline constexpr std::size_t kControlFd = 1;
inline constexpr std::size_t kMaxWords = 4096;
inline constexpr int kNone = -1;

/// What a child that waits to be started says of its module.
struct Readiness {
  /// Its SHA-256; empty: nobody has asked.
  std::string digest;
  /// It runs as native code of the cache.
  bool native = false;
};
/// "+" or "-" and the digest, or nothing.
std::string encode(const Readiness& readiness);
/// What is malformed is as nothing.
Readiness decode_readiness(std::string_view words);
/// A SHA-256 in lower case.
bool is_digest(std::string_view text);

/// All that the zygote itself reads: the rest is its child's.
struct Request {
  std::uint32_t sequence = 0;
  /// A PID namespace of its own.
  std::uint32_t new_pid = 0;
  /// A mount namespace of its own.
  std::uint32_t new_mounts = 0;
  /// A network namespace of its own, with nothing in it.
  std::uint32_t new_network = 0;
  /// Index of the PID namespace that the child shall be born into; kNone.
  std::int32_t pid_namespace = kNone;
  /// Index of the directory of a v2 cgroup that the child shall be born into; kNone. Where the
  /// kernel refuses that, the child enters it by Plan::unified_cgroup.
  std::int32_t cgroup = kNone;
};

struct Answer {
  std::uint32_t sequence = 0;
  /// The child, a child of the zygote's parent; or -errno.
  std::int32_t pid = 0;
};

/// Everything about the child, decided before there is one. Indices are of the request's
/// descriptors.
struct Plan {
  struct Mount {
    /// A detached mount (open_tree(2), fsmount(2)).
    std::int32_t fd = kNone;
    std::string target;
    bool directory = true;
    bool operator==(const Mount&) const = default;
  };
  struct Limit {
    std::int32_t resource = 0;
    std::uint64_t soft = 0;
    std::uint64_t hard = 0;
    bool operator==(const Limit&) const = default;
  };
  struct Preopen {
    std::string guest;
    std::string host;
    bool readonly = false;
    bool operator==(const Preopen&) const = default;
  };

  /// A path in the container, and the function to call: empty is _start.
  std::string module;
  std::string function;
  std::vector<std::string> args;
  std::vector<std::string> env;
  std::string cwd;
  std::vector<Preopen> preopens;
  std::uint32_t uid = 0;
  std::uint32_t gid = 0;
  std::vector<std::uint32_t> groups;
  std::uint32_t umask = 022;
  std::vector<Limit> limits;
  /// Of the guest's memory in pages of 64 KiB; 0: what the engine allows.
  std::uint32_t memory_pages = 0;

  /// A detached mount to become the root; kNone in a process that is added to a container.
  std::int32_t root = kNone;
  bool root_readonly = false;
  std::vector<Mount> mounts;
  /// To join, in this order.
  std::vector<std::int32_t> namespaces;
  std::int32_t user_namespace = kNone;
  /// The tasks files of v1 cgroups, open for writing.
  std::vector<std::int32_t> cgroups;
  /// cgroup.procs of the v2 cgroup, open for writing; kNone: there is none.
  std::int32_t unified_cgroup = kNone;
  /// Others put it into its cgroups: it waits for a byte on its control socket first.
  bool held = false;
  /// Standard streams; kNone is /dev/null.
  std::int32_t streams[3] = {kNone, kNone, kNone};
  /// The streams are a terminal, which becomes the controlling one.
  bool terminal = false;
  /// The directory of native code (artifact.h); kNone: there is none.
  std::int32_t cache = kNone;
  /// Of a process that compiles and runs nothing: a file with the module, and one for the code.
  std::int32_t source = kNone;
  std::int32_t code = kNone;
  /// Of a process that becomes the zygote of one module: its SHA-256.
  std::string zygote_of;

  bool operator==(const Plan&) const = default;
};

std::string encode(const Plan& plan);
/// False when the bytes are no plan.
bool decode(std::string_view bytes, Plan& plan);

/// args[0] of a container, "path#function", as runwasi has it.
std::pair<std::string, std::string> split_module(const std::string& word);

}  // namespace kuasar::wasm
