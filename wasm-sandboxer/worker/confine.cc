#include "worker/confine.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/openat2.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "worker/child.h"

namespace kuasar::wasm {
namespace {

int open_in(int root, const std::string& path, std::uint64_t flags) {
  open_how how{};
  how.flags = flags | O_CLOEXEC;
  how.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
  return static_cast<int>(::syscall(SYS_openat2, root, path.c_str(), &how, sizeof how));
}

/// Descriptor that closes itself: the child has few to spare.
class Fd {
 public:
  explicit Fd(int fd) : fd_(fd) {}
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  ~Fd() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }

 private:
  int fd_;
};

// Opens `path` below `root`, made where it is not there: directories 0755, a file 0644. Links in
// it lead nowhere but below `root`.
int make_target(int root, const std::string& path, bool directory) {
  const int found = open_in(root, path, O_PATH);
  if (found >= 0 || errno != ENOENT) return found;
  std::size_t at = 0;
  while (at < path.size()) {
    const std::size_t end = std::min(path.find('/', at + 1), path.size());
    const std::string upto = path.substr(0, end);
    const std::string parent = at == 0 ? "/" : path.substr(0, at);
    const std::string name = path.substr(path[at] == '/' ? at + 1 : at, end - at - 1);
    at = end;
    if (name.empty()) continue;
    if (Fd existing(open_in(root, upto, O_PATH)); existing || errno != ENOENT) continue;
    const Fd dir(open_in(root, parent, O_PATH | O_DIRECTORY));
    if (!dir) return -1;
    if (end < path.size() || directory) {
      if (::mkdirat(dir.get(), name.c_str(), 0755) != 0 && errno != EEXIST) return -1;
    } else {
      const Fd file(::openat(dir.get(), name.c_str(),
                             O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW | O_CLOEXEC, 0644));
      if (!file && errno != EEXIST) return -1;
    }
  }
  return open_in(root, path, O_PATH);
}

}  // namespace

// As kuasar-pid-init does: a tmpfs over a directory that surely exists, and the old root goes.
void enter_empty_root() {
  const auto check = [](long result, const char* step) {
    if (result < 0) refuse_errno(kZygoteSocket, step);
  };
  check(::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr), "make its mounts private");
  check(::mount("kuasar-wasm", "/proc", "tmpfs", MS_NODEV | MS_NOSUID | MS_NOEXEC,
                "mode=0555,size=4k,nr_inodes=3"),
        "mount an empty root");
  check(::chdir("/proc"), "enter its empty root");
  check(::mkdir(&kRootMount[1], 0700), "make a directory");
  check(::mount("none", ".", nullptr, MS_REMOUNT | MS_RDONLY | MS_NODEV | MS_NOSUID | MS_NOEXEC,
                nullptr),
        "make its root read-only");
  check(::syscall(SYS_pivot_root, ".", "."), "change its root");
  check(::umount2(".", MNT_DETACH), "leave the host's root");
  check(::chdir("/"), "enter its root");
}

void Confinement::enter_cgroups(bool in_unified) const {
  if (plan.held) {
    char byte = 0;
    ssize_t n;
    while ((n = ::read(control, &byte, 1)) < 0 && errno == EINTR) {
    }
    // Whoever should have done it is gone.
    if (n != 1) ::_exit(255);
  }
  const auto enter = [this](int index) {
    if (::write(fds[index], "0", 1) != 1) refuse_errno(control, "enter a cgroup");
  };
  std::for_each(plan.cgroups.begin(), plan.cgroups.end(), enter);
  if (plan.unified_cgroup != kNone && !in_unified) enter(plan.unified_cgroup);
}

void Confinement::join_namespaces() const {
  for (const int index : plan.namespaces) {
    if (::setns(fds[index], 0) != 0) refuse_errno(control, "join a namespace");
  }
}

void Confinement::build_root() const {
  if (plan.root == kNone) {
    if (::chdir("/") != 0) refuse_errno(control, "enter the container's root");
    return;
  }
  // In a child of one that is not root any more: image files are root's, and so is what is made for
  // them. It ends with drop_privileges().
  (void)::syscall(SYS_setfsgid, 0);
  (void)::syscall(SYS_setfsuid, 0);
  if (::move_mount(fds[plan.root], "", AT_FDCWD, kRootMount, MOVE_MOUNT_F_EMPTY_PATH) != 0) {
    refuse_errno(control, "mount the root file system");
  }
  const Fd root(::open(kRootMount, O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!root) refuse_errno(control, "open the root file system");
  for (const Plan::Mount& mount : plan.mounts) {
    const Fd target(make_target(root.get(), mount.target, mount.directory));
    if (!target) refuse_errno(control, "make the mount point " + mount.target);
    if (::move_mount(fds[mount.fd], "", target.get(), "",
                     MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) != 0) {
      refuse_errno(control, "mount " + mount.target);
    }
  }
  if (!plan.cwd.empty()) {
    const Fd cwd(make_target(root.get(), plan.cwd, true));
    if (!cwd && errno != EROFS) refuse_errno(control, "make the working directory " + plan.cwd);
  }
  if (plan.root_readonly) {
    mount_attr attributes{};
    attributes.attr_set = MOUNT_ATTR_RDONLY;
    if (::mount_setattr(root.get(), "", AT_EMPTY_PATH, &attributes, sizeof attributes) != 0) {
      refuse_errno(control, "make the root file system read-only");
    }
  }
  if (::fchdir(root.get()) != 0) refuse_errno(control, "enter the root file system");
  if (::syscall(SYS_pivot_root, ".", ".") != 0) refuse_errno(control, "change the root");
  if (::umount2(".", MNT_DETACH) != 0) refuse_errno(control, "leave the zygote's root");
  if (::chdir("/") != 0) refuse_errno(control, "enter the container's root");
}

void Confinement::set_limits() const {
  for (const Plan::Limit& limit : plan.limits) {
    const rlimit value{limit.soft, limit.hard};
    if (::setrlimit(static_cast<__rlimit_resource>(limit.resource), &value) != 0) {
      refuse_errno(control, "set a resource limit");
    }
  }
}

void Confinement::drop_privileges(std::uint64_t kept) const {
  const auto check = [this](long result, const char* step) {
    if (result < 0) refuse_errno(control, step);
  };
  if (plan.user_namespace != kNone) {
    check(::setns(fds[plan.user_namespace], CLONE_NEWUSER), "join the pod's user namespace");
  }
  check(::syscall(SYS_setgroups, plan.groups.size(), plan.groups.data()), "set its groups");
  for (int capability = 0; ::prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0; ++capability) {
    const bool there = ::prctl(PR_CAPBSET_READ, capability, 0, 0, 0) == 1;
    if (there) check(::prctl(PR_CAPBSET_DROP, capability, 0, 0, 0), "drop the bounding set");
  }
  if (kept != 0) check(::prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0), "keep capabilities");
  check(::syscall(SYS_setresgid, plan.gid, plan.gid, plan.gid), "change its group");
  check(::syscall(SYS_setresuid, plan.uid, plan.uid, plan.uid), "change its user");
  check(::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "drop ambient capabilities");
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct sets[_LINUX_CAPABILITY_U32S_3] = {};
  for (int word = 0; word < _LINUX_CAPABILITY_U32S_3; ++word) {
    sets[word].permitted = static_cast<std::uint32_t>(kept >> (32 * word));
    sets[word].effective = sets[word].permitted;
  }
  check(::syscall(SYS_capset, &header, sets), "drop its capabilities");
  check(::prctl(PR_SET_KEEPCAPS, 0, 0, 0, 0), "keep no capabilities");
  check(::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "set no_new_privs");
  check(::prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "become undumpable");
}

void Confinement::forbid_calls(FilterOptions options) const {
  std::vector<sock_filter> filter = build_filter(options);
  const sock_fprog program{static_cast<unsigned short>(filter.size()), filter.data()};
  if (::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0) != 0) {
    refuse_errno(control, "install the filter of system calls");
  }
}

}  // namespace kuasar::wasm
