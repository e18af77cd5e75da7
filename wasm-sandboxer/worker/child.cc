#include "worker/child.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/openat2.h>
#include <malloc.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <string_view>

#include "worker/artifact.h"
#include "worker/confine.h"
#include "worker/digest.h"
#include "worker/serve.h"

namespace kuasar::wasm {
namespace {

// Larger modules are refused before they take up memory.
constexpr off_t kMaxModule = 512L << 20;
constexpr off_t kMaxCode = 1L << 30;
// Until the module is loaded.
constexpr int kCacheFd = 4;
// Of the zygote of a module.
constexpr int kNullFd = 5;
constexpr int kPidNamespaceFd = 6;
constexpr int kNoInputFd = 7;
// What its children take to confine themselves.
constexpr std::uint64_t kZygoteCapabilities =
    1ULL << CAP_SYS_ADMIN | 1ULL << CAP_SETUID | 1ULL << CAP_SETGID | 1ULL << CAP_SYS_CHROOT;
// Of one that compiles.
constexpr int kSourceFd = 4;
constexpr int kCodeFd = 5;
constexpr int kLowestPriority = 19;
constexpr char kMagic[] = {'\0', 'a', 's', 'm'};
constexpr unsigned kCoreVersion = 1;

// False with errno.
bool write_all(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return false;
    bytes.remove_prefix(static_cast<std::size_t>(n));
  }
  return true;
}

// So many bytes of a file from its beginning; none with errno.
std::optional<std::string> read_bytes(int fd, off_t size) {
  std::string bytes(static_cast<std::size_t>(size), '\0');
  std::size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n =
        ::pread(fd, bytes.data() + done, bytes.size() - done, static_cast<off_t>(done));
    if (n < 0 && errno == EINTR) continue;
    // It has become shorter meanwhile.
    if (n == 0) errno = EIO;
    if (n <= 0) return std::nullopt;
    done += static_cast<std::size_t>(n);
  }
  return bytes;
}

void say(const std::string& text) {
  (void)write_all(STDERR_FILENO, text);
}

void end_on_signal(int signal) {
  ::_exit(128 + signal);
}

// PID 1 of a namespace is spared by every signal that it has no handler for, and a guest cannot
// have one. Not here: faults (SIGSEGV, SIGBUS, SIGFPE, SIGILL), which the kernel forces on it.
void obey_signals() {
  struct sigaction action {};
  action.sa_handler = end_on_signal;
  for (const int signal :
       {SIGHUP, SIGINT, SIGQUIT, SIGTRAP, SIGABRT, SIGUSR1, SIGUSR2, SIGALRM, SIGTERM, SIGSTKFLT,
        SIGXCPU, SIGXFSZ, SIGVTALRM, SIGPROF, SIGPOLL, SIGPWR, SIGSYS}) {
    ::sigaction(signal, &action, nullptr);
  }
  for (int signal = SIGRTMIN; signal <= SIGRTMAX; ++signal) ::sigaction(signal, &action, nullptr);
  // A guest sees a broken pipe as an error.
  ::signal(SIGPIPE, SIG_IGN);
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
}

// The whole of a file.
std::string read_whole(int fd, const std::string& name, int control) {
  struct stat st {};
  if (::fstat(fd, &st) != 0) refuse_errno(control, "stat " + name);
  std::optional<std::string> bytes = read_bytes(fd, st.st_size);
  if (!bytes) refuse_errno(control, "read " + name);
  return std::move(*bytes);
}

void set_streams(const Plan& plan, const std::vector<int>& fds, const Inheritance& zygote,
                 int control) {
  for (int i = 0; i < 3; ++i) {
    const int none = i == STDIN_FILENO ? zygote.no_input_fd : zygote.null_fd;
    const int from = plan.streams[i] == kNone ? none : fds[plan.streams[i]];
    if (::dup2(from, i) < 0) refuse_errno(control, "set up the standard streams");
  }
  if (plan.terminal && ::ioctl(STDIN_FILENO, TIOCSCTTY, 0) != 0) {
    refuse_errno(control, "make the terminal the controlling one");
  }
}

// What ps(1) shows. The zygote's environment has the name by which a daemon would find a zygote
// whose keeper died while it was started: a container must not be taken for that.
void show_command(const Plan& plan, CommandLine line) {
  show_words(line, plan.args);
  if (line.environment != nullptr) {
    std::memset(line.environment, 0,
                static_cast<std::size_t>(line.environment_end - line.environment));
  }
  const std::string name = plan.module.substr(plan.module.rfind('/') + 1);
  ::prctl(PR_SET_NAME, name.c_str(), 0, 0, 0);
}

std::string no_module(const std::string& path, const std::string& why) {
  return "\"" + path + "\" is no WebAssembly module: " + why +
         "; this runtime handler runs nothing else";
}

// Leaves the standard streams and these open, from 3 on in this order.
void keep_only(const std::vector<int>& fds, int control) {
  std::vector<int> copies;
  // Out of the way of those that they shall become.
  const int first_free = 3 + static_cast<int>(fds.size());
  for (const int fd : fds) copies.push_back(::fcntl(fd, F_DUPFD_CLOEXEC, first_free));
  int next = 3;
  for (const int copy : copies) {
    if (copy < 0 || ::dup3(copy, next++, O_CLOEXEC) < 0) {
      refuse_errno(control, "set up descriptors");
    }
  }
  if (::syscall(SYS_close_range, first_free, ~0U, 0) != 0) {
    refuse_errno(next > 3 ? 3 : control, "close descriptors");
  }
}

// As the container's user, inside its root. Its file is open as kModuleFd then.
std::string read_module(const Plan& plan, int control) {
  // Of the root, as RESOLVE_IN_ROOT begins there also with an absolute one.
  const std::string& path = plan.module;
  const std::string full = path.front() == '/' ? path : plan.cwd + "/" + path;
  const int root = ::open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
  open_how how{};
  // Something other than a file must not make us wait before we see that.
  how.flags = O_RDONLY | O_NONBLOCK | O_CLOEXEC;
  how.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
  const int fd = static_cast<int>(::syscall(SYS_openat2, root, full.c_str(), &how, sizeof how));
  struct stat st {};
  if (fd < 0 || ::fstat(fd, &st) != 0) refuse_errno(control, "module \"" + path + "\"");
  if (!S_ISREG(st.st_mode)) refuse(control, no_module(path, "it is not a regular file"));
  if (st.st_size > kMaxModule) refuse(control, no_module(path, "it is larger than 512 MiB"));
  unsigned char head[8] = {};
  const ssize_t got = ::pread(fd, head, sizeof head, 0);
  if (got != sizeof head || std::memcmp(head, kMagic, sizeof kMagic) != 0) {
    refuse(control, no_module(path, "it does not begin with \\0asm"));
  }
  const unsigned version = head[4] | head[5] << 8U;
  if (version != kCoreVersion || head[6] != 0 || head[7] != 0) {
    refuse(control, "\"" + path + "\" is a WebAssembly component or of another version than 1: " +
                        "not supported");
  }
  // Not one byte more than what is known of its size.
  std::optional<std::string> bytes = read_bytes(fd, st.st_size);
  if (!bytes) refuse_errno(control, "read \"" + path + "\"");
  ::close(root);
  if (fd != kModuleFd) {
    if (::dup3(fd, kModuleFd, O_CLOEXEC) < 0) refuse_errno(control, "set up descriptors");
    ::close(fd);
  }
  return std::move(*bytes);
}

// Empty: there is none, or none that is whole.
std::string find_code(const std::string& name) {
  open_how how{};
  how.flags = O_RDONLY | O_NONBLOCK | O_CLOEXEC;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS;
  const int fd = static_cast<int>(::syscall(SYS_openat2, kCacheFd, name.c_str(), &how, sizeof how));
  struct stat st {};
  std::string code;
  if (fd >= 0 && ::fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size <= kMaxCode) {
    if (const auto file = read_bytes(fd, st.st_size)) {
      code = std::string(unseal(*file).value_or(std::string_view()));
    }
  }
  if (fd >= 0) ::close(fd);
  return code;
}

// What the daemon is told once the module is loaded. The guest never has the calls that only
// loading of native code needs; a module without it neither.
Readiness load_module(const Inheritance& zygote, const Confinement& confinement) {
  const Plan& plan = confinement.plan;
  const int control = confinement.control;
  const std::string bytes = read_module(plan, control);
  const bool cached = plan.cache != kNone && !zygote.stamp.empty();
  const std::string digest = cached ? sha256_of(bytes) : "";
  const std::string code = cached ? find_code(artifact_name(digest, zygote.stamp)) : "";
  ::close(kCacheFd);
  const bool native = !code.empty();
  if (!cached || native) ::close(kModuleFd);
  const bool narrows = plan.cache != kNone;
  const FilterOptions running{.compiles = zygote.engine.compiles()};
  if (narrows && !native) confinement.forbid_calls(running);
  const std::string why = zygote.engine.load(plan, bytes, code);
  if (!why.empty()) refuse(control, "module \"" + plan.module + "\" is refused: " + why);
  if (narrows && native) confinement.forbid_calls(running);
  return {digest, native};
}

// The zygote has loaded it: is it the one?
Readiness check_module(const Inheritance& zygote, const Confinement& confinement) {
  const std::string digest = sha256_of(read_module(confinement.plan, confinement.control));
  ::close(kModuleFd);
  if (digest != zygote.loaded) {
    (void)!::write(confinement.control, "M", 1);
    ::_exit(255);
  }
  return {digest, true};
}

// Of the engine's zygote, with what it has but less rights: only what its children need to confine
// themselves. It is no container's: it lives in the empty root and without a network.
[[noreturn]] void become_zygote(const Inheritance& from, const Confinement& confinement) {
  const Plan& plan = confinement.plan;
  confinement.drop_privileges(kZygoteCapabilities);
  // The parent of its children shall be the one that knows them. Another user would have undone it.
  if (::prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) != 0) {
    refuse_errno(confinement.control, "end with the keeper");
  }
  keep_only({confinement.control, confinement.fds[plan.cache], from.null_fd, from.own_pid_namespace,
             from.no_input_fd},
            confinement.control);
  const Confinement rest{plan, confinement.fds, kZygoteSocket};
  rest.forbid_calls({.compiles = from.engine.compiles(), .loads_code = true, .serves = true});
  const std::string code = find_code(artifact_name(plan.zygote_of, from.stamp));
  ::close(kCacheFd);
  if (code.empty()) refuse(kZygoteSocket, "there is no native code of the module");
  const std::string why = from.engine.load(plan, "", code);
  if (!why.empty()) refuse(kZygoteSocket, "the native code is refused: " + why);
  ::malloc_trim(0);
  if (::send(kZygoteSocket, "R", 1, MSG_NOSIGNAL) != 1) ::_exit(0);
  serve({from.engine, from.stamp, kNullFd, kNoInputFd, kPidNamespaceFd, from.command_line,
         plan.zygote_of});
}

[[noreturn]] void compile(Engine& engine, int source, int target, int control) {
  const std::string bytes = read_whole(source, "the module", control);
  std::string code;
  const std::string why = engine.compile(bytes, code);
  if (!why.empty()) refuse(control, why);
  if (!write_all(target, code)) refuse_errno(control, "write the code");
  (void)!::write(control, "R", 1);
  ::_exit(0);
}

// A daemon that took over from one that died lets us go without having heard of us and closes its
// end: our word cannot be delivered then, or lies there unread, which the next read tells once
// (ECONNRESET), before what was sent to us. Only the end of the connection is one.
void await_start(int control, const Readiness& readiness) {
  // write(2), as send(2) is forbidden by now.
  const std::string ready = "R" + encode(readiness);
  (void)!::write(control, ready.data(), ready.size());
  char byte = 0;
  ssize_t n;
  bool reset = false;
  while ((n = ::read(control, &byte, 1)) < 0) {
    if (errno == EINTR) continue;
    if (errno != ECONNRESET || reset) break;
    reset = true;
  }
  // Nobody will start it any more.
  if (n != 1) ::_exit(255);
  ::close(control);
  ::close(kModuleFd);
}

}  // namespace

void show_words(CommandLine line, const std::vector<std::string>& words) {
  if (line.begin == nullptr) return;
  std::memset(line.begin, 0, static_cast<std::size_t>(line.end - line.begin));
  char* at = line.begin;
  for (const std::string& word : words) {
    if (static_cast<std::size_t>(line.end - at) <= word.size()) break;
    std::memcpy(at, word.data(), word.size());
    at += word.size() + 1;
  }
}

void refuse(int control, const std::string& why) {
  const std::string line = "E" + why.substr(0, kMaxWords - 1);
  // Nobody listens any more: then it is for the log.
  if (::write(control, line.data(), line.size()) < 0) say(why + "\n");
  ::_exit(255);
}

void refuse_errno(int control, const std::string& what) {
  refuse(control, what + ": " + std::strerror(errno));
}

void run_child(const Inheritance& zygote, const std::vector<int>& fds, bool in_cgroup) {
  Engine& engine = zygote.engine;
  int control = fds[kControlFd];
  Plan plan;
  const std::string encoded = read_whole(fds[kPlanFd], "the plan", control);
  if (!decode(encoded, plan)) refuse(control, "the plan is malformed");
  obey_signals();
  show_command(plan, zygote.command_line);
  ::setsid();
  const bool compiles = plan.source != kNone;
  if (compiles) ::setpriority(PRIO_PROCESS, 0, kLowestPriority);
  const Confinement confinement{plan, fds, control};
  confinement.enter_cgroups(in_cgroup);
  confinement.join_namespaces();
  ::umask(0);
  confinement.build_root();
  ::umask(plan.umask);
  set_streams(plan, fds, zygote, control);
  confinement.set_limits();
  if (!plan.zygote_of.empty()) become_zygote(zygote, confinement);
  confinement.drop_privileges();
  const bool loaded = !zygote.loaded.empty();
  const bool looks_for_code = !compiles && !loaded && plan.cache != kNone;
  // Only the streams, the control socket and the cache stay, or a compiler's two files.
  std::vector<int> kept = {control};
  if (compiles) kept = {control, fds[plan.source], fds[plan.code]};
  if (looks_for_code) kept.push_back(fds[plan.cache]);
  keep_only(kept, control);
  control = 3;
  if (!plan.cwd.empty() && ::chdir(plan.cwd.c_str()) != 0) {
    refuse_errno(control, "enter the working directory " + plan.cwd);
  }
  const Confinement rest{plan, fds, control};
  rest.forbid_calls({.compiles = engine.compiles() || compiles, .loads_code = looks_for_code});
  if (compiles) compile(engine, kSourceFd, kCodeFd, control);
  const Readiness readiness = loaded ? check_module(zygote, rest) : load_module(zygote, rest);
  // What only parsing needed.
  ::malloc_trim(0);
  await_start(control, readiness);
  const GuestEnd end = engine.run(plan);
  if (!end.trap.empty()) say("wasm trap: " + end.trap + "\n");
  ::_exit(end.code);
}

}  // namespace kuasar::wasm
