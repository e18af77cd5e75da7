#include "task/host_driver.h"

#include <boost/asio/post.hpp>
#include <utility>

#include "base/failpoint.h"
#include "base/files.h"
#include "base/log.h"
#include "kuasar/state/v1/state.pb.h"
#include "os/cgroup.h"
#include "os/idmap.h"
#include "os/mount.h"
#include "os/oom_score.h"
#include "os/pidfd.h"

namespace kuasar::task {
namespace {

std::string scratch_path(const std::string& dir) {
  return dir + "/lower";
}

}  // namespace

std::string HostDriver::process_key(const ProcessRef& ref) {
  return fmt::format("{}/{}/process", ref.container, ref.exec.empty() ? "-" : ref.exec);
}

Error HostDriver::gone(const ProcessRef& ref) {
  if (!ref.exec.empty()) {
    return Error::make(Code::kNotFound, "exec {} of container {} has no process", ref.exec,
                       ref.container);
  }
  return Error::make(Code::kNotFound, "container {} has no process", ref.container);
}

HostDriver::EntryPtr HostDriver::find(const std::string& container) const {
  const auto found = entries_.find(container);
  return found == entries_.end() ? nullptr : found->second;
}

HostDriver::MemberPtr HostDriver::find(const ProcessRef& ref) const {
  const EntryPtr entry = find(ref.container);
  if (!entry || ref.exec.empty()) return entry ? entry->init : nullptr;
  const auto found = entry->execs.find(ref.exec);
  return found == entry->execs.end() ? nullptr : found->second;
}

Task<Result<>> HostDriver::adopt(ProcessRef ref, MemberPtr member, pid_t pid) {
  CO_TRY(member->process, co_await spawner_.adopt(process_key(ref), pid));
  // None when it has ended, and was reaped by who inherited it from a keeper that died: its pidfd
  // tells how.
  member->start_time = os::process_start_time(pid).value_or(0);
  member->pid = pid;
  co_return Result<>();
}

Task<Result<>> HostDriver::resize(ProcessRef, std::shared_ptr<const Stdio> stdio,
                                  std::uint16_t width, std::uint16_t height) {
  co_return stdio->resize(width, height);
}

Task<os::ExitStatus> HostDriver::wait_exit(ProcessRef ref) {
  const MemberPtr member = find(ref);
  if (!member || !member->process) {
    co_return os::ExitStatus{255, std::chrono::system_clock::now(), false};
  }
  co_return co_await spawner_.wait(*member->process);
}

// A pidfd is readable once its process has ended (pidfd_open(2)).
void HostDriver::on_exit(const asio::any_io_executor& executor, const ProcessRef& ref,
                         std::function<void()> then) {
  const MemberPtr member = find(ref);
  if (!member || !member->process) return asio::post(executor, std::move(then));
  member->exit_watch =
      std::make_unique<os::WhenReadable>(executor, member->process->pidfd.get(), std::move(then));
}

void HostDriver::stop_watching() {
  for (const auto& [id, entry] : entries_) {
    entry->oom.reset();
    entry->init->exit_watch.reset();
    for (const auto& [exec, member] : entry->execs) member->exit_watch.reset();
  }
}

Result<> HostDriver::signal(const ProcessRef& ref, int signal) {
  const MemberPtr member = find(ref);
  if (!member || !member->process) return fail(gone(ref));
  return os::pidfd_signal(member->process->pidfd.get(), signal);
}

void HostDriver::reap(const ProcessRef& ref) {
  const MemberPtr member = find(ref);
  if (member && member->process) spawner_.acknowledge(*member->process);
}

Task<Result<>> HostDriver::signal_others(std::string container, int signal) {
  const EntryPtr entry = find(container);
  if (!entry || entry->cgroups.empty()) co_return Result<>();
  auto send = [dirs = entry->cgroups, signal, init = entry->init->pid]() -> Result<> {
    os::signal_cgroup(dirs, signal, init);
    return {};
  };
  co_return co_await pool_.run(std::move(send));
}

Task<Result<>> HostDriver::kill_all(std::string container) {
  const EntryPtr entry = find(container);
  if (!entry) co_return Result<>();
  if (entry->init->process) {
    Result<> sent = os::pidfd_signal(entry->init->process->pidfd.get(), 9);
    if (!sent && sent.error().code != Code::kNotFound) co_return sent;
  }
  if (entry->cgroups.empty()) co_return Result<>();
  auto kill = [dirs = entry->cgroups] { return os::kill_cgroup(dirs); };
  co_return co_await pool_.run(std::move(kill));
}

std::vector<pid_t> HostDriver::pids(const std::string& container) {
  const EntryPtr entry = find(container);
  return entry ? os::cgroup_pids(entry->cgroups) : std::vector<pid_t>{};
}

pid_t HostDriver::host_pid(const ProcessRef& ref) {
  const MemberPtr member = find(ref);
  const pid_t pid = member ? member->pid : 0;
  return pid == 0 && ref.exec.empty() ? 1 : pid;
}

void HostDriver::save(const std::string& container, state::v1::ContainerState& record) {
  const EntryPtr entry = find(container);
  if (!entry || entry->init->start_time == 0) return;
  const auto note = [](const Member& member, state::v1::ProcessIdentity& identity) {
    identity.set_pid(member.pid);
    identity.set_start_time(member.start_time);
  };
  note(*entry->init, *record.mutable_init());
  for (std::string& dir : entry->cgroups.paths()) record.add_cgroups(std::move(dir));
  record.set_systemd_unit(entry->systemd_unit);
  for (state::v1::ExecState& exec : *record.mutable_execs()) {
    const auto found = entry->execs.find(exec.id());
    if (found != entry->execs.end()) note(*found->second, *exec.mutable_process());
  }
}

Task<Result<bool>> HostDriver::readopt(ProcessRef ref, MemberPtr member, pid_t pid,
                                       unsigned long long start_time) {
  if (pid <= 0) co_return false;
  member->pid = pid;
  member->start_time = start_time;
  std::optional<os::Process> process =
      co_await os::readopt(spawner_, process_key(ref), pid, start_time);
  if (!process) co_return false;
  member->process = std::move(*process);
  co_return true;
}

Task<Result<bool>> HostDriver::recover_exec(ProcessRef ref, state::v1::ProcessIdentity identity) {
  const EntryPtr entry = find(ref.container);
  if (!entry) co_return fail(gone(ref));
  const auto member = std::make_shared<Member>();
  entry->execs[ref.exec] = member;
  co_return co_await readopt(ref, member, identity.pid(), identity.start_time());
}

std::string HostDriver::config_path(const std::string& dir) {
  return dir + "/config.json";
}

Task<Result<>> HostDriver::mount_rootfs(const ContainerPlan& plan) {
  auto prepare = [dir = plan.dir, rootfs = plan.rootfs, mounts = plan.rootfs_mounts,
                  id_map = plan.id_map, config = plan.spec.dump(),
                  timeline = plan.timeline]() -> Result<> {
    Span writing(timeline, "config.json");
    CHECK_OK(write_file(config_path(dir), config));
    writing.end();
    CHECK_OK(failpoint_result("container.config"));
    const Span mounting(timeline, "mounts");
    auto mounted = os::mount_all(mounts, rootfs, id_map, scratch_path(dir));
    if (!mounted) return fail(std::move(mounted).error().context("mount the root file system"));
    return failpoint_result("container.rootfs");
  };
  co_return co_await pool_.run(std::move(prepare), plan.timeline, "root file system");
}

Task<Result<>> HostDriver::begin_remove(std::string container) {
  CO_CHECK(co_await kill_all(container));
  if (const EntryPtr entry = find(container)) entry->oom.reset();
  co_return Result<>();
}

Task<Result<>> HostDriver::finish_remove(std::string container) {
  const EntryPtr entry = find(container);
  auto clean = [dir = entry->dir, rootfs = entry->rootfs, cgroups = entry->cgroups]() -> Result<> {
    os::remove_cgroups(cgroups);
    CHECK_OK(os::remove_idmap_scratch(scratch_path(dir)));
    return os::unmount_all(rootfs);
  };
  CO_CHECK(co_await pool_.run(std::move(clean)));
  if (entry->init->process) spawner_.acknowledge(*entry->init->process);
  for (const auto& [id, member] : entry->execs) {
    if (member->process) spawner_.acknowledge(*member->process);
  }
  entries_.erase(container);
  ooms_.forget(container);
  co_return Result<>();
}

void HostDriver::recover_entry(EntryPtr entry, const std::string& dir,
                               const state::v1::ContainerState& record) {
  entry->dir = dir;
  entry->rootfs = record.bundle() + "/rootfs";
  entry->cgroups = std::vector<std::string>(record.cgroups().begin(), record.cgroups().end());
  entry->systemd_unit = record.systemd_unit();
  enter(record.id(), std::move(entry));
}

Result<> HostDriver::clamp_oom_score(oci::Spec& spec) {
  TRY(const std::optional<int> wanted, spec.oom_score_adj());
  if (!wanted) return {};
  if (!lowest_oom_score_adj_) {
    TRY(lowest_oom_score_adj_, os::lowest_oom_score_adj());
    if (*lowest_oom_score_adj_ > -1000) {
      log::warning({},
                   "this machine forbids an oom_score_adj below {} (no CAP_SYS_RESOURCE): "
                   "containers that ask for less get that",
                   *lowest_oom_score_adj_);
    }
  }
  if (*wanted >= *lowest_oom_score_adj_) return {};
  return spec.set_oom_score_adj(*lowest_oom_score_adj_);
}

}  // namespace kuasar::task
