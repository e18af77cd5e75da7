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

std::string exec_path(const std::string& dir, const std::string& exec, std::string_view suffix) {
  return fmt::format("{}/exec-{}.{}", dir, exec, suffix);
}

std::string process_key(const ProcessRef& ref) {
  return fmt::format("{}/{}/process", ref.container, ref.exec.empty() ? "-" : ref.exec);
}

Error gone(const ProcessRef& ref) {
  if (!ref.exec.empty()) {
    return Error::make(Code::kNotFound, "exec {} of container {} has no process", ref.exec,
                       ref.container);
  }
  return Error::make(Code::kNotFound, "container {} has no process", ref.container);
}

}  // namespace

OciDriver::OciDriver(os::Spawner& spawner, BlockingPool& pool, oci::OciRuntime& runtime)
    : spawner_(spawner), pool_(pool), runtime_(runtime) {}

OciDriver::EntryPtr OciDriver::find(const std::string& container) const {
  const auto found = entries_.find(container);
  return found == entries_.end() ? nullptr : found->second;
}

OciDriver::MemberPtr OciDriver::find(const ProcessRef& ref) const {
  const EntryPtr entry = find(ref.container);
  if (!entry || ref.exec.empty()) return entry ? entry->init : nullptr;
  const auto found = entry->execs.find(ref.exec);
  return found == entry->execs.end() ? nullptr : found->second;
}

// Names what an OCI runtime has left behind.
Task<Result<>> OciDriver::adopt(ProcessRef ref, MemberPtr member, pid_t pid) {
  CO_TRY(member->process, co_await spawner_.adopt(process_key(ref), pid));
  CO_TRY(member->start_time, os::process_start_time(pid));
  member->pid = pid;
  co_return Result<>();
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
  args.stdin_fd = stdio.stdin_fd();
  args.console_socket = stdio.console_socket();
  CO_TRY(const pid_t pid, co_await runtime_.create(std::move(args)));
  ProcessRef init;
  init.container = plan.id;
  CO_CHECK(co_await adopt(std::move(init), entry->init, pid));
  CO_TRY(entry->cgroups, os::own_cgroups_of(pid));
  co_return Result<>();
}

Task<Result<>> OciDriver::start(std::string container) {
  const EntryPtr entry = find(container);
  if (!entry || !entry->init->process) {
    ProcessRef init;
    init.container = container;
    co_return fail(gone(init));
  }
  Result<> started = co_await runtime_.start(container, log_path(entry->dir));
  if (started || os::pidfd_exited(entry->init->process->pidfd.get())) co_return started;
  // An earlier daemon died after its runtime had let the init go, which takes this FIFO away (runc
  // libcontainer, exec.fifo): the runtime refuses to do it again.
  const std::string runtime_state = runtime_.config().root + "/" + container;
  const bool known = ::access(runtime_state.c_str(), F_OK) == 0;
  const bool let_go = ::access((runtime_state + "/exec.fifo").c_str(), F_OK) != 0;
  if (!known || !let_go) co_return started;
  log::debug({"", container}, "started before: {}", started.error().message);
  co_return Result<>();
}

oci::ExecArgs OciDriver::exec_args(const ExecPlan& plan) {
  oci::ExecArgs args;
  args.id = plan.ref.container;
  args.exec = plan.ref.exec;
  args.process_file = plan.process_file;
  args.pid_file = exec_path(plan.dir, plan.ref.exec, "pid");
  args.log_file = exec_path(plan.dir, plan.ref.exec, "log");
  return args;
}

Task<Result<>> OciDriver::exec(ExecPlan plan, const Stdio& stdio) {
  const EntryPtr entry = find(plan.ref.container);
  if (!entry) co_return fail(gone(plan.ref));
  oci::ExecArgs args = exec_args(plan);
  args.stdin_fd = stdio.stdin_fd();
  args.stdout_fd = stdio.stdout_fd();
  args.stderr_fd = stdio.stderr_fd();
  args.console_socket = stdio.console_socket();
  CO_TRY(const pid_t pid, co_await runtime_.exec(std::move(args)));
  const auto member = std::make_shared<Member>();
  entry->execs[plan.ref.exec] = member;
  co_return co_await adopt(plan.ref, member, pid);
}

Task<Result<>> OciDriver::resume_exec(ExecPlan plan) {
  const EntryPtr entry = find(plan.ref.container);
  if (!entry) co_return fail(gone(plan.ref));
  CO_TRY(const pid_t pid, co_await runtime_.resume_exec(exec_args(plan)));
  const auto member = std::make_shared<Member>();
  entry->execs[plan.ref.exec] = member;
  co_return co_await adopt(plan.ref, member, pid);
}

void OciDriver::forget_exec(const ProcessRef& ref) {
  const EntryPtr entry = find(ref.container);
  if (!entry) return;
  const MemberPtr member = find(ref);
  if (member && member->process) spawner_.acknowledge(*member->process);
  entry->execs.erase(ref.exec);
  for (const char* suffix : {"pid", "log"}) {
    ::unlink(exec_path(entry->dir, ref.exec, suffix).c_str());
  }
}

Task<Result<>> OciDriver::resize(ProcessRef, std::shared_ptr<const Stdio> stdio,
                                 std::uint16_t width, std::uint16_t height) {
  co_return stdio->resize(width, height);
}

Task<os::ExitStatus> OciDriver::wait_exit(ProcessRef ref) {
  const MemberPtr member = find(ref);
  if (!member || !member->process) {
    co_return os::ExitStatus{255, std::chrono::system_clock::now(), false};
  }
  co_return co_await spawner_.wait(*member->process);
}

Result<> OciDriver::signal(const ProcessRef& ref, int signal) {
  const MemberPtr member = find(ref);
  if (!member || !member->process) return fail(gone(ref));
  return os::pidfd_signal(member->process->pidfd.get(), signal);
}

Task<Result<>> OciDriver::kill_all(std::string container) {
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

std::vector<pid_t> OciDriver::pids(const std::string& container) {
  const EntryPtr entry = find(container);
  return entry ? os::cgroup_pids(entry->cgroups) : std::vector<pid_t>{};
}

pid_t OciDriver::host_pid(const ProcessRef& ref) {
  const MemberPtr member = find(ref);
  const pid_t pid = member ? member->pid : 0;
  return pid == 0 && ref.exec.empty() ? 1 : pid;
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
  if (entry->init->process) spawner_.acknowledge(*entry->init->process);
  for (const auto& [id, member] : entry->execs) {
    if (member->process) spawner_.acknowledge(*member->process);
  }
  entries_.erase(container);
  runtime_.forget(container);
  co_return Result<>();
}

void OciDriver::save(const std::string& container, state::v1::ContainerState& record) {
  const EntryPtr entry = find(container);
  if (!entry || entry->init->start_time == 0) return;
  const auto note = [](const Member& member, state::v1::ProcessIdentity& identity) {
    identity.set_pid(member.pid);
    identity.set_start_time(member.start_time);
  };
  note(*entry->init, *record.mutable_init());
  for (const std::string& dir : entry->cgroups) record.add_cgroups(dir);
  for (state::v1::ExecState& exec : *record.mutable_execs()) {
    const auto found = entry->execs.find(exec.id());
    if (found != entry->execs.end()) note(*found->second, *exec.mutable_process());
  }
}

// The process that a record names: what the spawner knows by its key counts, also when it has ended
// meanwhile; otherwise the pid, if it is still that process.
Task<Result<bool>> OciDriver::readopt(ProcessRef ref, MemberPtr member, pid_t pid,
                                      unsigned long long start_time) {
  if (pid <= 0) co_return false;
  member->pid = pid;
  member->start_time = start_time;
  Result<os::Process> known = co_await spawner_.find(process_key(ref));
  if (known && known->pid == pid) {
    member->process = std::move(*known);
    co_return true;
  }
  // The pidfd first, then the start time: the pair is then about one and the same process.
  Result<os::Process> process = co_await spawner_.adopt(process_key(ref), pid);
  if (!process) co_return false;
  const Result<unsigned long long> now = os::process_start_time(pid);
  if (!now || *now != start_time) co_return false;
  member->process = std::move(*process);
  co_return true;
}

Task<Result<bool>> OciDriver::recover(std::string dir,
                                      std::shared_ptr<const state::v1::ContainerState> record) {
  auto entry = std::make_shared<Entry>();
  entry->dir = dir;
  entry->rootfs = record->bundle() + "/rootfs";
  entries_[record->id()] = entry;
  entry->cgroups = {record->cgroups().begin(), record->cgroups().end()};
  if (record->phase() == state::v1::ContainerState::CREATING) {
    co_await runtime_.abandon_create(record->id());
    co_return false;
  }
  ProcessRef init;
  init.container = record->id();
  co_return co_await readopt(std::move(init), entry->init, record->init().pid(),
                             record->init().start_time());
}

Task<Result<bool>> OciDriver::recover_exec(ProcessRef ref, state::v1::ProcessIdentity identity) {
  const EntryPtr entry = find(ref.container);
  if (!entry) co_return fail(gone(ref));
  const auto member = std::make_shared<Member>();
  entry->execs[ref.exec] = member;
  co_return co_await readopt(ref, member, identity.pid(), identity.start_time());
}

}  // namespace kuasar::task
