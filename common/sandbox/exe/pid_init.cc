// kuasar-pid-init: PID 1 of a pod's shared PID namespace. It reaps and does nothing else. The same
// program does what only a process with one thread can: enter or make a user namespace.
//
// Contract with the daemon. Of every role, fd 3 is the write end of the pipe on which it answers:
// the one byte 'R' once it is ready, or one line of words before it exits with 1.
//
//   kuasar-pid-init COUNT        spawned with CLONE_NEWPID | CLONE_NEWNS in effect
//     fd 4...  the COUNT namespaces (ipc, uts, net) to join
//   kuasar-pid-init COUNT user   the same for a pod with a user namespace, whose PID namespace must
//     belong to that one; spawned with CLONE_NEWNS. It forks: the parent answers "P<pid>\n" and
//     ends, the child is PID 1, waits for the daemon to have named it, and then goes on as above.
//     fd 4     read end of the pipe on which the daemon says "go on" by one byte; its end is ours
//     fd 5     the user namespace
//     fd 6...  the COUNT namespaces
//   kuasar-pid-init KINDS new    makes a user namespace, answers 'U', is told by a byte that the
//   kuasar-pid-init KINDS join   maps are written; or enters the one that is fd 5. Makes a
//     namespace in it for each letter of KINDS (i: ipc, u: uts), answers 'R', and ends when fd 4
//     does: the daemon has pinned them by then.
//
// Whatever a container may see of it through /proc/1 belongs to nobody: an empty read-only root,
// no capability, no descriptor, no argument, no environment, not dumpable. It links nothing but
// the C library, statically, because the root that it came from is gone.

#include <errno.h>
#include <linux/capability.h>
#include <linux/securebits.h>
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
// With a user namespace:
constexpr int kGoFd = 4;
constexpr int kUserFd = 5;
constexpr int kFirstFdBehindUser = 6;
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

void join_namespaces(int first, long count) {
  for (int fd = first; fd < first + count; ++fd) {
    check(setns(fd, 0), "join a namespace of the pod");
  }
}

void answer(char word) {
  if (write(kReadyFd, &word, 1) != 1) _exit(1);
}

// False when the daemon has closed its end, or died.
bool go_on() {
  char byte;
  ssize_t got;
  while ((got = read(kGoFd, &byte, 1)) < 0 && errno == EINTR) {
  }
  return got == 1;
}

void become(unsigned id) {
  check(syscall(SYS_setgroups, 0, nullptr), "drop its groups");
  check(syscall(SYS_setresgid, id, id, id), "change its group");
  check(syscall(SYS_setresuid, id, id, id), "change its user");
}

void drop_privileges(bool drop_ids) {
  for (int capability = 0; prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0; ++capability) {
    check(prctl(PR_CAPBSET_DROP, capability, 0, 0, 0), "drop the bounding set");
  }
  check(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "drop ambient capabilities");
  if (drop_ids) become(kNobody);
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

// The host's nobody, not the pod's: to the pod it is an id that is not mapped. Capabilities are
// kept for the way into the user namespace, where a full set of them is new.
void enter_user_namespace_as_nobody() {
  check(prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0), "keep its capabilities");
  become(kNobody);
  check(setns(kUserFd, CLONE_NEWUSER), "join the pod's user namespace");
}

// Goes on as PID 1 of a PID namespace that belongs to the pod's user namespace.
void become_init_in_user_namespace() {
  check(unshare(CLONE_NEWPID), "make a PID namespace");
  const pid_t child = fork();
  check(child, "fork");
  if (child > 0) {
    char line[16];
    size_t at = sizeof line;
    line[--at] = '\n';
    for (pid_t rest = child; rest > 0; rest /= 10) line[--at] = static_cast<char>('0' + rest % 10);
    line[--at] = 'P';
    const size_t length = sizeof line - at;
    _exit(write(kReadyFd, line + at, length) == static_cast<ssize_t>(length) ? 0 : 1);
  }
  if (!go_on()) _exit(1);
}

[[noreturn]] void make_namespaces(const char* kinds, bool join) {
  if (join) {
    check(setns(kUserFd, CLONE_NEWUSER), "join the pod's user namespace");
  } else {
    check(unshare(CLONE_NEWUSER), "make a user namespace");
    answer('U');
    if (!go_on()) _exit(1);
  }
  // What the namespaces hold shall belong to the pod's root.
  become(0);
  int flags = 0;
  if (strchr(kinds, 'i') != nullptr) flags |= CLONE_NEWIPC;
  if (strchr(kinds, 'u') != nullptr) flags |= CLONE_NEWUTS;
  check(unshare(flags), "make the pod's IPC and UTS namespaces");
  answer('R');
  while (go_on()) {
  }
  _exit(0);
}

[[noreturn]] void explain() {
  const char usage[] = "kuasar-pid-init is started by a sandboxer for a pod and not by hand\n";
  _exit(write(STDERR_FILENO, usage, sizeof usage - 1) < 0 ? 2 : 64);
}

[[noreturn]] void be_init(long count, bool in_user_namespace) {
  umask(077);
  enter_empty_root();
  if (in_user_namespace) {
    enter_user_namespace_as_nobody();
    become_init_in_user_namespace();
  }
  if (setsid() < 0 && getsid(0) != getpid()) die("start a session of its own");
  join_namespaces(in_user_namespace ? kFirstFdBehindUser : kFirstNamespaceFd, count);
  drop_privileges(!in_user_namespace);
  close(STDIN_FILENO);
  close(STDOUT_FILENO);
  close(STDERR_FILENO);
  check(syscall(SYS_close_range, kFirstNamespaceFd, ~0U, 0), "close what it was given");
  answer('R');
  close(kReadyFd);
  reap_for_ever();
}

}  // namespace

int main(int argc, char** argv, char** envp) {
  // Blocked first: an orphan that dies early is remembered, every other signal stays pending.
  sigset_t all;
  sigfillset(&all);
  sigprocmask(SIG_SETMASK, &all, nullptr);

  const char* role = argc == 3 ? argv[2] : "";
  const bool join = strcmp(role, "join") == 0;
  if (join || strcmp(role, "new") == 0) make_namespaces(argv[1], join);
  const bool in_user_namespace = strcmp(role, "user") == 0;
  char* end = nullptr;
  const long count = argc == 2 || in_user_namespace ? strtol(argv[1], &end, 10) : -1;
  if (count < 0 || count > kMaxNamespaces || end == argv[1] || *end != '\0') explain();
  if (!in_user_namespace && getpid() != 1) explain();
  hide_arguments(argc, argv, envp);
  be_init(count, in_user_namespace);
}
