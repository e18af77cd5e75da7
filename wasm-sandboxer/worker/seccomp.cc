#include "worker/seccomp.h"

#include <asm/termbits.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace kuasar::wasm {
namespace {

#if defined(__x86_64__)
constexpr unsigned kArchitecture = AUDIT_ARCH_X86_64;
#elif defined(__aarch64__)
constexpr unsigned kArchitecture = AUDIT_ARCH_AARCH64;
#else
#error "no list of system calls for this architecture"
#endif

// Files and clocks for WASI, memory for the interpreter. None makes a process, a socket, a device,
// a mount or a namespace, sends a signal to others, or looks at another process.
constexpr int kAllowed[] = {
    SYS_read,
    SYS_write,
    SYS_readv,
    SYS_writev,
    SYS_pread64,
    SYS_pwrite64,
    SYS_preadv,
    SYS_pwritev,
    SYS_openat,
    SYS_openat2,
    SYS_close,
    SYS_fstat,
    SYS_newfstatat,
    SYS_statx,
    SYS_fstatfs,
    SYS_lseek,
    SYS_dup,
    SYS_dup3,
    SYS_fdatasync,
    SYS_fsync,
    SYS_ftruncate,
    SYS_fallocate,
    SYS_fadvise64,
    SYS_getdents64,
    SYS_mkdirat,
    SYS_unlinkat,
    SYS_renameat,
    SYS_renameat2,
    SYS_linkat,
    SYS_symlinkat,
    SYS_readlinkat,
    SYS_utimensat,
    SYS_faccessat,
    SYS_faccessat2,
    SYS_ppoll,
    SYS_pselect6,
    SYS_epoll_create1,
    SYS_epoll_ctl,
    SYS_epoll_pwait,
    SYS_timerfd_create,
    SYS_timerfd_settime,
    SYS_timerfd_gettime,
    SYS_clock_gettime,
    SYS_clock_getres,
    SYS_clock_nanosleep,
    SYS_nanosleep,
    SYS_restart_syscall,
    SYS_getrandom,
    SYS_munmap,
    SYS_mremap,
    SYS_madvise,
    SYS_brk,
    SYS_futex,
    SYS_sched_yield,
    SYS_exit,
    SYS_exit_group,
    SYS_rt_sigaction,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_sigaltstack,
    SYS_getpid,
    SYS_gettid,
    SYS_getuid,
    SYS_geteuid,
    SYS_getgid,
    SYS_getegid,
    SYS_shutdown,
#if defined(__x86_64__)
    SYS_open,
    SYS_stat,
    SYS_lstat,
    SYS_access,
    SYS_poll,
    SYS_select,
    SYS_getdents,
    SYS_mkdir,
    SYS_rmdir,
    SYS_unlink,
    SYS_rename,
    SYS_link,
    SYS_symlink,
    SYS_readlink,
    SYS_epoll_wait,
    SYS_time,
    SYS_gettimeofday,
#endif
};
// What the threads of a compiling engine's WASI need beside (Wasmtime 50: Tokio).
constexpr int kForThreads[] = {SYS_set_robust_list,   SYS_rseq,     SYS_eventfd2,
                               SYS_sched_getaffinity, SYS_pwritev2, SYS_preadv2};
// Making children, and confining oneself: processes, namespaces, mounts, users.
constexpr int kForZygotes[] = {
    SYS_clone3,   SYS_recvmsg,   SYS_sendto,    SYS_close_range, SYS_setns,      SYS_setsid,
    SYS_umask,    SYS_chdir,     SYS_fchdir,    SYS_move_mount,  SYS_pivot_root, SYS_mount_setattr,
    SYS_umount2,  SYS_prlimit64, SYS_setgroups, SYS_setresgid,   SYS_setresuid,  SYS_setfsgid,
    SYS_setfsuid, SYS_capset,    SYS_prctl,
#if defined(__x86_64__)
    SYS_dup2,     SYS_setrlimit,
#endif
};
// Of these no call that asks for executable memory: an interpreter needs none, and who has broken
// out of it gets none.
constexpr int kWithoutExec[] = {SYS_mmap, SYS_mprotect};
// Of fcntl(2) what concerns a descriptor itself. With F_SETOWN, F_SETSIG and O_ASYNC it would send
// signals to others, with F_NOTIFY and leases to ourselves, and F_SETPIPE_SZ takes kernel memory.
constexpr int kFcntl[] = {F_DUPFD, F_DUPFD_CLOEXEC, F_GETFD, F_SETFD, F_GETFL};
constexpr unsigned kRefused = SECCOMP_RET_ERRNO | (EPERM & SECCOMP_RET_DATA);
constexpr unsigned kDenied = SECCOMP_RET_ERRNO | (ENOSYS & SECCOMP_RET_DATA);

sock_filter load(std::size_t offset) {
  return BPF_STMT(BPF_LD | BPF_W | BPF_ABS, static_cast<unsigned>(offset));
}
sock_filter answer(unsigned what) {
  return BPF_STMT(BPF_RET | BPF_K, what);
}

// Allows a call whose argument has none of the bits. The arguments are little-endian, the low word
// is first; those that are looked at are ints.
void allow_without(std::vector<sock_filter>& filter, int argument, unsigned bits) {
  filter.push_back(load(offsetof(seccomp_data, args) + argument * sizeof(seccomp_data::args[0])));
  filter.push_back(BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, bits, 0, 1));
  filter.push_back(answer(kRefused));
  filter.push_back(answer(SECCOMP_RET_ALLOW));
}

// Allows a call of which `bits` of an argument are `wanted`.
void allow_with(std::vector<sock_filter>& filter, int argument, unsigned bits, unsigned wanted) {
  filter.push_back(load(offsetof(seccomp_data, args) + argument * sizeof(seccomp_data::args[0])));
  filter.push_back(BPF_STMT(BPF_ALU | BPF_AND | BPF_K, bits));
  filter.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, wanted, 1, 0));
  filter.push_back(answer(kRefused));
  filter.push_back(answer(SECCOMP_RET_ALLOW));
}

// Appends `body` for one call: it is only come to with that number.
void add_call(std::vector<sock_filter>& filter, int number, const std::vector<sock_filter>& body) {
  filter.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<unsigned>(number), 0,
                            static_cast<unsigned char>(body.size())));
  filter.insert(filter.end(), body.begin(), body.end());
}

// Threads, but no processes and no namespaces: clone(2), since the flags of clone3(2) lie in memory
// and the C library takes ENOSYS for "use the other one".
void add_threads(std::vector<sock_filter>& filter) {
  constexpr unsigned kProcesses = CLONE_VFORK | CLONE_PARENT | CLONE_NEWNS | CLONE_NEWCGROUP |
                                  CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID |
                                  CLONE_NEWNET;
  std::vector<sock_filter> body;
  allow_with(body, 0, CLONE_THREAD | kProcesses, CLONE_THREAD);
  add_call(filter, SYS_clone, body);
}

// Compiled code is written first and made executable afterwards: no memory is ever both.
void add_code(std::vector<sock_filter>& filter) {
  std::vector<sock_filter> body = {
      load(offsetof(seccomp_data, args[2])),
      BPF_STMT(BPF_ALU | BPF_AND | BPF_K, PROT_WRITE | PROT_EXEC),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, PROT_WRITE | PROT_EXEC, 0, 1), answer(kRefused),
      answer(SECCOMP_RET_ALLOW)};
  add_call(filter, SYS_mprotect, body);
}

// prctl(2) for PR_SET_SECCOMP alone.
void add_filters(std::vector<sock_filter>& filter) {
  std::vector<sock_filter> body;
  allow_with(body, 0, ~0U, PR_SET_SECCOMP);
  add_call(filter, SYS_prctl, body);
}

// ioctl(2): TCGETS and TCGETS2 of a standard stream, by which the C library finds out whether it is
// a terminal (the latter since glibc 2.42), and for a zygote TIOCSCTTY.
void add_terminals(std::vector<sock_filter>& filter, bool serves) {
  constexpr std::size_t kRequest = offsetof(seccomp_data, args[1]);
  std::vector<sock_filter> body = {load(kRequest)};
  if (serves) {
    body.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, TIOCSCTTY, 0, 1));
    body.push_back(answer(SECCOMP_RET_ALLOW));
  }
  body.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, TCGETS, 2, 0));
  body.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, TCGETS2, 1, 0));
  body.push_back(answer(kRefused));
  body.push_back(load(offsetof(seccomp_data, args[0])));
  body.push_back(BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, STDERR_FILENO, 0, 1));
  body.push_back(answer(kRefused));
  body.push_back(answer(SECCOMP_RET_ALLOW));
  add_call(filter, SYS_ioctl, body);
}

// What is not allowed of it is refused: the number is no longer in the accumulator.
void add_fcntl(std::vector<sock_filter>& filter) {
  std::vector<sock_filter> body = {load(offsetof(seccomp_data, args[1]))};
  for (const int command : kFcntl) {
    body.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<unsigned>(command), 0, 1));
    body.push_back(answer(SECCOMP_RET_ALLOW));
  }
  body.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, F_SETFL, 1, 0));
  body.push_back(answer(kRefused));
  allow_without(body, 2, O_ASYNC);
  add_call(filter, SYS_fcntl, body);
}

void add_allowed(std::vector<sock_filter>& filter, int number) {
  filter.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<unsigned>(number), 0, 1));
  filter.push_back(answer(SECCOMP_RET_ALLOW));
}

void add_without_exec(std::vector<sock_filter>& filter, int number) {
  std::vector<sock_filter> body;
  // The third argument of both is the protection.
  allow_without(body, 2, PROT_EXEC);
  add_call(filter, number, body);
}

}  // namespace

std::vector<sock_filter> build_filter(FilterOptions options) {
  // The architecture first: a number means another call in another one. x32's numbers are above
  // all that are allowed.
  std::vector<sock_filter> filter = {
      load(offsetof(seccomp_data, arch)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, kArchitecture, 1, 0),
      answer(SECCOMP_RET_KILL_PROCESS),
      load(offsetof(seccomp_data, nr)),
  };
  for (const int number : kAllowed) add_allowed(filter, number);
  if (options.compiles) {
    for (const int number : kForThreads) add_allowed(filter, number);
    add_threads(filter);
  }
  if (options.serves) {
    for (const int number : kForZygotes) add_allowed(filter, number);
  }
  if (options.compiles || options.loads_code) add_code(filter);
  if (options.loads_code && !options.serves) add_filters(filter);
  for (const int number : kWithoutExec) add_without_exec(filter, number);
  add_fcntl(filter);
  add_terminals(filter, options.serves);
  filter.push_back(answer(kDenied));
  return filter;
}

}  // namespace kuasar::wasm
