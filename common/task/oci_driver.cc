#include "task/oci_driver.h"

#include <unistd.h>

#include "base/files.h"
#include "base/log.h"
#include "kuasar/state/v1/state.pb.h"
#include "os/cgroup.h"
#include "os/pidfd.h"

namespace kuasar::task {
namespace {

std::string config_path(const std::string& dir) {
  return dir + "/config.json";
}
std::string pid_path(const std::string& dir) {
  return dir + "/init.pid";
}
std::string log_path(const std::string& dir) {
  return dir + "/runtime.log";
}

Error gone(const std::string& container) {
  return Error::make(Code::kNotFound, "container {} has no process", container);
}

}  // namespace

OciDriver::OciDriver(os::Spawner& spawner, BlockingPool& pool, oci::OciRuntime& runtime)
    : spawner_(spawner), pool_(pool), runtime_(runtime) {}

OciDriver::EntryPtr OciDriver::find(const std::string& container) const {
  const auto found = entries_.find(container);
  return found == entries_.end() ? nullptr : found->second;
}

Task<Result<>> OciDriver::create(ContainerPlan plan, const Stdio& stdio) {
  auto entry = std::make_shared<Entry>();
  entry->dir = plan.dir;
  entry->rootfs = plan.rootfs;
  entries_[plan.id] = entry;

  CO_CHECK(plan.spec.set_root_path(plan.rootfs));
  CO_TRY(const std::string cgroups_path, plan.spec.cgroups_path());
  auto prepare = [dir = plan.dir, rootfs = plan.rootfs, mounts = plan.rootfs_mounts,
                  config = plan.spec.dump()]() -> Result<> {
    CHECK_OK(write_file(config_path(dir), config));
    auto mounted = os::mount_all(mounts, rootfs);
    if (!mounted) return fail(std::move(mounted).error().context("mount the root file system"));
    return {};
  };
  CO_CHECK(co_await pool_.run(std::move(prepare)));

  oci::CreateArgs args;
  args.id = plan.id;
  args.bundle = plan.dir;
  args.pid_file = pid_path(plan.dir);
  args.log_file = log_path(plan.dir);
  args.stdout_fd = stdio.stdout_fd();
  args.stderr_fd = stdio.stderr_fd();
  args.systemd_cgroup = oci::is_systemd_cgroups_path(cgroups_path);
  args.no_pivot = plan.no_pivot_root;
  args.no_new_keyring = plan.no_new_keyring;
  CO_TRY(const pid_t pid, co_await runtime_.create(std::move(args)));
  CO_TRY(entry->start_time, os::process_start_time(pid));
  CO_TRY(entry->init, co_await spawner_.adopt(plan.id + "/init", pid));
  entry->pid = pid;
  CO_TRY(entry->cgroups, os::own_cgroups_of(pid));
  co_return Result<>();
}

Task<Result<>> OciDriver::start(std::string container) {
  const EntryPtr entry = find(container);
  if (!entry || !entry->init) co_return fail(gone(container));
  co_return co_await runtime_.start(container, log_path(entry->dir));
}

Task<os::ExitStatus> OciDriver::wait_exit(ProcessRef ref) {
  const EntryPtr entry = find(ref.container);
  if (!entry || !entry->init) {
    co_return os::ExitStatus{255, std::chrono::system_clock::now(), false};
  }
  co_return co_await spawner_.wait(*entry->init);
}

Result<> OciDriver::signal(const ProcessRef& ref, int signal) {
  const EntryPtr entry = find(ref.container);
  if (!entry || !entry->init) return fail(gone(ref.container));
  return os::pidfd_signal(entry->init->pidfd.get(), signal);
}

Task<Result<>> OciDriver::kill_all(std::string container) {
  const EntryPtr entry = find(container);
  if (!entry) co_return Result<>();
  if (entry->init) {
    Result<> sent = os::pidfd_signal(entry->init->pidfd.get(), 9);
    if (!sent && sent.error().code != Code::kNotFound) co_return sent;
  }
  if (entry->cgroups.empty()) co_return Result<>();
  auto kill = [dirs = entry->cgroups] { return os::kill_cgroup(dirs); };
  co_return co_await pool_.run(std::move(kill));
}

std::vector<pid_t> OciDriver::pids(const std::string& container) {
  const EntryPtr entry = find(container);
  return entry ? os::cgroup_pids(entry->cgroups) : std::vector<pid_t>{};
}

pid_t OciDriver::host_pid(const ProcessRef& ref) {
  const EntryPtr entry = find(ref.container);
  return entry ? entry->pid : 1;
}

Task<Result<>> OciDriver::remove(std::string container) {
  const EntryPtr entry = find(container);
  if (!entry) co_return Result<>();
  CO_CHECK(co_await kill_all(container));
  // The runtime is asked only about what it knows: an exec less for a create that never got there.
  const std::string runtime_state = runtime_.config().root + "/" + container;
  if (::access(runtime_state.c_str(), F_OK) == 0) {
    Result<> removed = co_await runtime_.remove(container, log_path(entry->dir), false);
    if (!removed) {
      log::debug({"", container}, "{}; again with --force", removed.error().message);
      CO_CHECK(co_await runtime_.remove(container, log_path(entry->dir), true));
    }
  }
  auto clean = [rootfs = entry->rootfs, cgroups = entry->cgroups] {
    os::remove_cgroups(cgroups);
    return os::unmount_all(rootfs);
  };
  CO_CHECK(co_await pool_.run(std::move(clean)));
  if (entry->init) spawner_.acknowledge(*entry->init);
  entries_.erase(container);
  co_return Result<>();
}

void OciDriver::save(const std::string& container, state::v1::ContainerState& record) {
  const EntryPtr entry = find(container);
  if (!entry || entry->start_time == 0) return;
  record.mutable_init()->set_pid(entry->pid);
  record.mutable_init()->set_start_time(entry->start_time);
  for (const std::string& dir : entry->cgroups) record.add_cgroups(dir);
}

Task<Result<bool>> OciDriver::recover(std::string dir,
                                      std::shared_ptr<const state::v1::ContainerState> record) {
  auto entry = std::make_shared<Entry>();
  entry->dir = dir;
  entry->rootfs = record->bundle() + "/rootfs";
  entries_[record->id()] = entry;
  entry->cgroups = {record->cgroups().begin(), record->cgroups().end()};
  pid_t pid = record->init().pid();
  unsigned long long start_time = record->init().start_time();
  if (pid <= 0) co_return false;
  entry->pid = pid;
  entry->start_time = start_time;
  // The pidfd first, then the start time: the pair is then about one and the same process.
  Result<os::Process> init = co_await spawner_.adopt(record->id() + "/init", pid);
  if (!init) co_return false;
  const Result<unsigned long long> now = os::process_start_time(pid);
  if (!now || *now != start_time || os::pidfd_exited(init->pidfd.get())) co_return false;
  entry->init = std::move(*init);
  co_return true;
}

}  // namespace kuasar::task
