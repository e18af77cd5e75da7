#include "launch.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <utility>

#include "os/cgroup.h"
#include "os/cgroup_files.h"
#include "os/detached_mount.h"
#include "os/systemd_unit.h"

namespace kuasar::wasm {
namespace {

constexpr const char* kFirstToGo = "1000";

Result<UniqueFd> open_namespace(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return fail_errno("open", path);
  return fd;
}

// The first move of a process between cgroups for a while waits 10 to 30 ms for a grace period of
// RCU (os::prepare_cgroup_move). Two ways do not: a thread that moves itself by v1's tasks file
// (the child has one thread), and a birth in a cgroup of v2 (both
// seen on Linux 6.18).
Result<> add_cgroups(Launch& launch, const std::vector<std::string>& cgroups) {
  for (const std::string& dir : cgroups) {
    UniqueFd tasks(::open((dir + "/tasks").c_str(), O_WRONLY | O_CLOEXEC));
    if (tasks) {
      launch.plan.cgroups.push_back(launch.add(std::move(tasks)));
      continue;
    }
    if (errno != ENOENT) return fail_errno("open", dir + "/tasks");
    const std::string path = dir + "/cgroup.procs";
    UniqueFd procs(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
    UniqueFd directory(::open(dir.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (!procs || !directory) return fail_errno("open", path);
    launch.plan.unified_cgroup = launch.add(std::move(procs));
    launch.request.cgroup = launch.add(std::move(directory));
  }
  return {};
}

Result<bool> is_directory(int mount) {
  struct stat st {};
  if (::fstat(mount, &st) != 0) return fail_errno("stat");
  return S_ISDIR(st.st_mode);
}

Result<> add_mount(Launch& launch, const MountStep& step) {
  if (step.idmapped && launch.plan.user_namespace == kNone) {
    return fail(Code::kInvalidArgument, "an idmapped mount in a pod without a user namespace");
  }
  const int owners = step.idmapped ? launch.fds[launch.plan.user_namespace].get() : -1;
  TRY(UniqueFd mount, step.devices
                          ? os::make_device_dir()
                          : os::make_detached_mount(step.plan, step.recursive_readonly, owners));
  TRY(const bool directory, is_directory(mount.get()));
  launch.plan.mounts.push_back({launch.add(std::move(mount)), step.target, directory});
  return {};
}

// False when both are the same namespace: joining one's own user namespace is an error.
Result<bool> differs(const std::string& path, const std::string& own) {
  struct stat theirs {};
  struct stat ours {};
  if (::stat(path.c_str(), &theirs) != 0) return fail_errno("stat", path);
  if (::stat(own.c_str(), &ours) != 0) return fail_errno("stat", own);
  return theirs.st_ino != ours.st_ino || theirs.st_dev != ours.st_dev;
}

}  // namespace

std::int32_t Launch::add(UniqueFd fd) {
  fds.push_back(std::move(fd));
  return static_cast<std::int32_t>(fds.size()) - 1;
}

Result<Launch> gather_container(ContainerBlueprint blueprint, const std::string& rootfs,
                                const std::vector<std::string>& cgroups) {
  Launch launch;
  launch.plan = std::move(blueprint.plan);
  launch.request.new_mounts = 1;
  if (!blueprint.pid_namespace.empty()) {
    TRY(UniqueFd pid, open_namespace(blueprint.pid_namespace));
    launch.request.pid_namespace = launch.add(std::move(pid));
  } else {
    launch.request.new_pid = blueprint.host_pid ? 0 : 1;
  }
  for (const std::string& path : blueprint.namespaces) {
    TRY(UniqueFd joined, open_namespace(path));
    launch.plan.namespaces.push_back(launch.add(std::move(joined)));
  }
  if (!blueprint.user_namespace.empty()) {
    TRY(UniqueFd user, open_namespace(blueprint.user_namespace));
    launch.plan.user_namespace = launch.add(std::move(user));
  }
  CHECK_OK(add_cgroups(launch, cgroups));
  TRY(const os::MountPlan root, os::plan_mount({"bind", rootfs, {}}));
  TRY(UniqueFd tree, os::make_detached_mount(root));
  launch.plan.root = launch.add(std::move(tree));
  for (const MountStep& step : blueprint.mounts) {
    Result<> added = add_mount(launch, step);
    if (!added) return fail(std::move(added).error().context("mount {}", step.target));
  }
  return launch;
}

Result<Launch> gather_process(Plan plan, pid_t pid, const std::vector<std::string>& cgroups) {
  Launch launch;
  launch.plan = std::move(plan);
  const std::string dir = fmt::format("/proc/{}/ns/", pid);
  TRY(UniqueFd born_into, open_namespace(dir + "pid"));
  launch.request.pid_namespace = launch.add(std::move(born_into));
  // The mount namespace last: with it goes the sight of everything else.
  for (const char* kind : {"net", "ipc", "uts", "mnt"}) {
    TRY(UniqueFd joined, open_namespace(dir + kind));
    launch.plan.namespaces.push_back(launch.add(std::move(joined)));
  }
  TRY(const bool own_user, differs(dir + "user", "/proc/self/ns/user"));
  if (own_user) {
    TRY(UniqueFd user, open_namespace(dir + "user"));
    launch.plan.user_namespace = launch.add(std::move(user));
  }
  CHECK_OK(add_cgroups(launch, cgroups));
  return launch;
}

Task<Result<Helper>> launch_helper(os::Spawner& spawner, Zygote& zygote, Launch launch,
                                   std::string key, std::chrono::nanoseconds timeout,
                                   std::string who) {
  CO_TRY(SocketPair pair, make_socket_pair());
  launch.fds[kControlFd] = std::move(pair.theirs);
  CO_TRY(launch.fds[kPlanFd], plan_file(launch.plan));
  CO_TRY(const pid_t pid, co_await zygote.make_child(launch.request, launch.fds));
  launch.fds.clear();
  CO_TRY(os::Process process, co_await spawner.adopt(std::move(key), pid));
  (void)os::write_control(fmt::format("/proc/{}/oom_score_adj", pid), kFirstToGo);
  const Result<std::string> ready = co_await await_ready(pair.ours.get(), timeout, std::move(who));
  if (!ready) co_return fail(ready.error());
  co_return Helper{std::move(process), std::move(pair.ours)};
}

Result<> enter_scope(const Scope& scope, pid_t pid) {
  // Which properties systemd takes depends on where the controllers are.
  TRY(const std::vector<std::string> slice, os::cgroups_at(os::slice_of(scope.cgroups_path)));
  const bool v2 = os::find_controller(slice, &os::CgroupControllers::cpuacct).v2;
  TRY(std::vector<os::UnitProperty> properties, os::plan_unit_properties(scope.limits, {}, v2));
  CHECK_OK(os::start_scope(scope.cgroups_path, pid, std::move(properties)));
  TRY(const std::vector<std::string> dirs,
      os::make_container_cgroups(os::cgroup_path_of(scope.cgroups_path), true));
  os::enter_cgroups(pid, dirs);
  return os::write_limits(dirs, scope.limits);
}

}  // namespace kuasar::wasm
