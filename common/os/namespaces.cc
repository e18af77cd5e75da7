#include "os/namespaces.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sched.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <thread>

#include "base/files.h"
#include "base/rollback.h"
#include "base/unique_fd.h"
#include "os/mount.h"

namespace kuasar::os {
namespace {

Result<> write_sysctl(const Sysctl& sysctl) {
  UniqueFd fd(::open(sysctl.path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!fd) return fail_errno("open", sysctl.path);
  const ssize_t n = ::write(fd.get(), sysctl.value.data(), sysctl.value.size());
  if (n < 0) return fail_errno("write", fmt::format("\"{}\" to {}", sysctl.value, sysctl.path));
  return {};
}

Result<> pin(const std::string& namespace_file, const std::string& target) {
  UniqueFd fd(::open(target.c_str(), O_RDONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd) return fail_errno("create", target);
  Result<> bound = bind_mount(namespace_file, target);
  if (!bound) ::unlink(target.c_str());
  return bound;
}

Result<> make_in_this_thread(const PodNamespacePlan& plan) {
  const bool own_uts = !plan.uts_pin.empty();
  if (::unshare(CLONE_NEWIPC | (own_uts ? CLONE_NEWUTS : 0)) != 0) {
    return fail_errno("unshare", "the pod's IPC and UTS namespaces");
  }
  if (own_uts && !plan.hostname.empty() &&
      ::sethostname(plan.hostname.data(), plan.hostname.size()) != 0) {
    return fail_errno("sethostname", plan.hostname);
  }
  for (const Sysctl& sysctl : plan.sysctls) CHECK_OK(write_sysctl(sysctl));
  if (!plan.net_sysctls.empty()) {
    UniqueFd netns(::open(plan.netns_path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!netns) return fail_errno("open", plan.netns_path);
    if (::setns(netns.get(), CLONE_NEWNET) != 0) return fail_errno("setns", plan.netns_path);
    for (const Sysctl& sysctl : plan.net_sysctls) CHECK_OK(write_sysctl(sysctl));
  }
  Rollback rollback;
  CHECK_OK(pin("/proc/thread-self/ns/ipc", plan.ipc_pin));
  rollback.add([&] { (void)remove_pin(plan.ipc_pin); });
  if (own_uts) CHECK_OK(pin("/proc/thread-self/ns/uts", plan.uts_pin));
  rollback.commit();
  return {};
}

}  // namespace

Result<> make_pod_namespaces(const PodNamespacePlan& plan) {
  Result<> result;
  std::thread([&] { result = make_in_this_thread(plan); }).join();
  return result;
}

Result<> pin_process_namespace(pid_t pid, const std::string& kind, const std::string& target) {
  return pin(fmt::format("/proc/{}/ns/{}", pid, kind), target);
}

Result<> remove_pin(const std::string& target) {
  CHECK_OK(unmount_all(target));
  if (::unlink(target.c_str()) != 0 && errno != ENOENT) return fail_errno("unlink", target);
  return {};
}

bool is_namespace_pin(const std::string& path) {
  struct statfs st {};
  return ::statfs(path.c_str(), &st) == 0 && st.f_type == NSFS_MAGIC;
}

}  // namespace kuasar::os
