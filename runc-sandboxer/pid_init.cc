// kuasar-pid-init: PID 1 of a pod's shared PID namespace. It reaps and does nothing else.
//
// Contract with the daemon, which spawns it with CLONE_NEWPID | CLONE_NEWNS in effect:
//   argv[1]    how many namespaces follow
//   fd 3       write end of the readiness pipe
//   fd 4...    the namespaces (ipc, uts, net) to join, in this order
// It writes the one byte 'R' once it is ready, or one line of words before it exits with 1.
//
// Whatever a container may see of it through /proc/1 belongs to nobody: an empty read-only root,
// no capability, no descriptor, no argument, no environment, not dumpable. It links nothing but
// the C library, statically, because the root that it came from is gone.

#include <errno.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

namespace {

constexpr int kReadyFd = 3;
constexpr int kFirstNamespaceFd = 4;
constexpr long kMaxNamespaces = 16;
// "nobody" and "nogroup" wherever the kernel needs a user without rights (overflowuid).
constexpr unsigned kNobody = 65534;

[[noreturn]] void die(const char* step) {
  const int err = errno;
  char line[256];
  size_t length = 0;
  const auto append = [&](const char* text) {
    while (*text != '\0' && length < sizeof line - 1) line[length++] = *text++;
  };
  append("pid-init cannot ");
  append(step);
  append(": ");
  append(strerror(err));
  line[length++] = '\n';
  // The status tells as well, should nobody read this.
  if (write(kReadyFd, line, length) < 0) _exit(2);
  _exit(1);
}

void check(long result, const char* step) {
  if (result < 0) die(step);
}

// The new root is a tmpfs over /proc (a directory that surely exists and that nobody here needs)
// and the old one is detached, so that this mount namespace holds nothing of the host.
void enter_empty_root() {
  check(mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr), "make its mounts private");
  constexpr unsigned long kFlags = MS_NODEV | MS_NOSUID | MS_NOEXEC | MS_RDONLY;
  check(mount("kuasar-pid-init", "/proc", "tmpfs", kFlags, "mode=0555,size=4k,nr_inodes=2"),
        "mount an empty root");
  check(chdir("/proc"), "enter its empty root");
  // With both the same, the old root lies over the new one and is taken off at once
  // (pivot_root(2)).
  check(syscall(SYS_pivot_root, ".", "."), "change its root");
  check(umount2(".", MNT_DETACH), "leave the host's root");
  check(chdir("/"), "enter its root");
}

void join_namespaces(long count) {
  for (int fd = kFirstNamespaceFd; fd < kFirstNamespaceFd + count; ++fd) {
    check(setns(fd, 0), "join a namespace of the pod");
  }
}

void drop_privileges() {
  for (int capability = 0; prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0; ++capability) {
    check(prctl(PR_CAPBSET_DROP, capability, 0, 0, 0), "drop the bounding set");
  }
  check(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "drop ambient capabilities");
  check(syscall(SYS_setgroups, 0, nullptr), "drop its groups");
  check(syscall(SYS_setresgid, kNobody, kNobody, kNobody), "become nogroup");
  check(syscall(SYS_setresuid, kNobody, kNobody, kNobody), "become nobody");
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {};
  check(syscall(SYS_capset, &header, none), "drop its capabilities");
  check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "set no_new_privs");
  check(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "become undumpable");
}

// /proc/1/cmdline and /proc/1/environ show this very memory.
void hide_arguments(int argc, char** argv, char** envp) {
  const char name[] = "kuasar-pid-init";
  for (char** variable = envp; *variable != nullptr; ++variable) {
    memset(*variable, 0, strlen(*variable));
  }
  const size_t room = strlen(argv[0]);
  for (int i = 0; i < argc; ++i) memset(argv[i], 0, strlen(argv[i]));
  memcpy(argv[0], name, room < sizeof name - 1 ? room : sizeof name - 1);
  prctl(PR_SET_NAME, name, 0, 0, 0);
}

[[noreturn]] void reap_for_ever() {
  sigset_t child;
  sigemptyset(&child);
  sigaddset(&child, SIGCHLD);
  for (;;) {
    siginfo_t info;
    sigwaitinfo(&child, &info);
    while (waitpid(-1, nullptr, WNOHANG | __WALL) > 0) {
    }
  }
}

}  // namespace

int main(int argc, char** argv, char** envp) {
  // Blocked first: an orphan that dies early is remembered, every other signal stays pending.
  sigset_t all;
  sigfillset(&all);
  sigprocmask(SIG_SETMASK, &all, nullptr);

  char* end = nullptr;
  const long count = argc == 2 ? strtol(argv[1], &end, 10) : -1;
  if (getpid() != 1 || count < 0 || count > kMaxNamespaces || end == argv[1] || *end != '\0') {
    const char usage[] =
        "kuasar-pid-init is started by runc-sandboxer as PID 1 of a pod and not by hand\n";
    return write(STDERR_FILENO, usage, sizeof usage - 1) < 0 ? 2 : 64;
  }
  hide_arguments(argc, argv, envp);
  umask(077);
  if (setsid() < 0 && getsid(0) != getpid()) die("start a session of its own");
  enter_empty_root();
  join_namespaces(count);
  drop_privileges();
  close(STDIN_FILENO);
  close(STDOUT_FILENO);
  close(STDERR_FILENO);
  check(syscall(SYS_close_range, kFirstNamespaceFd, ~0U, 0), "close what it was given");
  if (write(kReadyFd, "R", 1) != 1) _exit(1);
  close(kReadyFd);
  reap_for_ever();
}
