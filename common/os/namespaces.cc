#include "os/namespaces.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <linux/nsfs.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>

#include "base/failpoint.h"
#include "base/files.h"
#include "base/rollback.h"
#include "base/unique_fd.h"
#include "os/mount.h"
#include "os/own_thread.h"

namespace kuasar::os {
namespace {

Result<> write_setting(const Sysctl& sysctl) {
  UniqueFd fd(::open(sysctl.path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!fd) return fail_errno("open", sysctl.path);
  const ssize_t n = ::write(fd.get(), sysctl.value.data(), sysctl.value.size());
  if (n < 0) return fail_errno("write", fmt::format("\"{}\" to {}", sysctl.value, sysctl.path));
  return {};
}

// The system call changes this thread alone, the function of the C library the whole process.
Result<> set_effective_user(uid_t uid) {
  if (::syscall(SYS_setresuid, -1, uid, -1) != 0) return fail_errno("setresuid");
  return {};
}

// The settings of an IPC namespace obey the root of its user namespace, and no capability of the
// host's root helps (the kernel's ipc_permissions()).
Result<> write_sysctl(const Sysctl& sysctl) {
  Result<> written = write_setting(sysctl);
  if (written || written.error().err != EACCES) return written;
  struct stat st {};
  if (::stat(sysctl.path.c_str(), &st) != 0 || st.st_uid == ::geteuid()) return written;
  // With another user the kernel takes the process for one that leaves no core file.
  const int dumpable = ::prctl(PR_GET_DUMPABLE);
  const uid_t self = ::geteuid();
  CHECK_OK(set_effective_user(st.st_uid));
  written = write_setting(sysctl);
  CHECK_OK(set_effective_user(self));
  (void)::prctl(PR_SET_DUMPABLE, dumpable);
  return written;
}

Result<> pin(const std::string& namespace_file, const std::string& target) {
  UniqueFd fd(::open(target.c_str(), O_RDONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd) return fail_errno("create", target);
  Result<> bound = bind_mount(namespace_file, target);
  if (!bound) ::unlink(target.c_str());
  return bound;
}

Result<> join(const std::string& path, int type) {
  if (path.empty()) return {};
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return fail_errno("open", path);
  if (::setns(fd.get(), type) != 0) return fail_errno("setns", path);
  return {};
}

Result<> enter(const PodNamespacePlan& plan) {
  if (plan.made) {
    CHECK_OK(join(plan.ipc_pin, CLONE_NEWIPC));
    return join(plan.uts_pin, CLONE_NEWUTS);
  }
  const int own =
      (plan.ipc_pin.empty() ? 0 : CLONE_NEWIPC) | (plan.uts_pin.empty() ? 0 : CLONE_NEWUTS);
  if (own != 0 && ::unshare(own) != 0) {
    return fail_errno("unshare", "the pod's IPC and UTS namespaces");
  }
  return {};
}

Result<> make_in_this_thread(const PodNamespacePlan& plan) {
  CHECK_OK(enter(plan));
  const bool own_uts = !plan.uts_pin.empty();
  if (own_uts && !plan.hostname.empty() &&
      ::sethostname(plan.hostname.data(), plan.hostname.size()) != 0) {
    return fail_errno("sethostname", plan.hostname);
  }
  for (const Sysctl& sysctl : plan.sysctls) CHECK_OK(write_sysctl(sysctl));
  if (!plan.net_sysctls.empty()) {
    CHECK_OK(join(plan.netns_path, CLONE_NEWNET));
    for (const Sysctl& sysctl : plan.net_sysctls) CHECK_OK(write_sysctl(sysctl));
  }
  CHECK_OK(failpoint_result("pod.sysctls"));
  if (plan.made) return {};
  Rollback rollback;
  if (!plan.ipc_pin.empty()) CHECK_OK(pin("/proc/thread-self/ns/ipc", plan.ipc_pin));
  rollback.add([&] { (void)remove_pin(plan.ipc_pin); });
  CHECK_OK(failpoint_result("pod.ipc"));
  if (own_uts) CHECK_OK(pin("/proc/thread-self/ns/uts", plan.uts_pin));
  rollback.commit();
  return {};
}

}  // namespace

Result<> make_pod_namespaces(const PodNamespacePlan& plan) {
  return run_in_own_thread([&] { return make_in_this_thread(plan); });
}

Result<> pin_process_namespace(pid_t pid, const std::string& kind, const std::string& target) {
  return pin(fmt::format("/proc/{}/ns/{}", pid, kind), target);
}

Result<UniqueFd> open_owning_user_namespace(const std::string& path) {
  const UniqueFd owned(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!owned) return fail_errno("open", path);
  UniqueFd owner(::ioctl(owned.get(), NS_GET_USERNS));
  if (!owner) return fail_errno("ask for the user namespace of", path);
  struct stat theirs {};
  struct stat ours {};
  if (::fstat(owner.get(), &theirs) != 0 || ::stat("/proc/self/ns/user", &ours) != 0) {
    return fail_errno("stat", "a user namespace");
  }
  if (theirs.st_ino == ours.st_ino && theirs.st_dev == ours.st_dev) {
    return fail(Code::kFailedPrecondition,
                "{} belongs to the host's user namespace, not to one of the pod", path);
  }
  return owner;
}

Result<> remove_pin(const std::string& target) {
  if (target.empty()) return {};
  CHECK_OK(unmount_all(target));
  if (::unlink(target.c_str()) != 0 && errno != ENOENT) return fail_errno("unlink", target);
  return {};
}

bool is_namespace_pin(const std::string& path) {
  struct statfs st {};
  return ::statfs(path.c_str(), &st) == 0 && st.f_type == NSFS_MAGIC;
}

}  // namespace kuasar::os
