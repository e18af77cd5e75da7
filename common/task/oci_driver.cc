#include "task/oci_driver.h"

#include <unistd.h>

#include "base/failpoint.h"
#include "base/files.h"
#include "base/log.h"
#include "kuasar/state/v1/state.pb.h"
#include "oci/exec_fifo.h"
#include "os/cgroup.h"
#include "os/systemd_unit.h"

namespace kuasar::task {
namespace {

// An init that runc has created is at its FIFO, or will be in a moment.
constexpr std::chrono::seconds kLetGoTimeout{10};

std::string pid_path(const std::string& dir) {
  return dir + "/init.pid";
}
std::string log_path(const std::string& dir) {
  return dir + "/runtime.log";
}

std::string exec_path(const std::string& dir, const std::string& exec, std::string_view suffix) {
  return fmt::format("{}/exec-{}.{}", dir, exec, suffix);
}

// Where the OCI runtime will put the container. Only cgroups that bear the container's own name:
// everything in them may be killed.
std::vector<std::string> planned_cgroups(const std::string& cgroups_path, const std::string& id) {
  const std::string path = os::cgroup_path_of(cgroups_path);
  const std::string name = path.substr(path.rfind('/') + 1);
  const bool own = path.starts_with('/') &&
                   (name == id || name == id + ".scope" || name.ends_with("-" + id + ".scope"));
  if (!own) return {};
  return os::container_cgroups(path).value_or(std::vector<std::string>());
}

// What a Start holds over a restart.
std::string start_name(const std::string& container) {
  return "start/" + container;
}

}  // namespace

OciDriver::OciDriver(os::Spawner& spawner, BlockingPool& pool, os::FdHolder& holder,
                     oci::OciRuntimes& runtimes)
    : HostDriver(spawner, pool), holder_(holder), runtimes_(runtimes) {}

OciDriver::OciEntryPtr OciDriver::find_oci(const std::string& container) const {
  return std::static_pointer_cast<OciEntry>(find(container));
}

Result<std::string> OciDriver::runtime_for(const std::string& binary) {
  Result<oci::OciRuntime*> runtime = runtimes_.find(binary);
  if (!runtime) return fail(std::move(runtime).error().context("options.BinaryName"));
  return (*runtime)->config().binary;
}

Task<Result<>> OciDriver::adopt_left(ProcessRef ref, MemberPtr member, pid_t pid) {
  const char* const verb = ref.exec.empty() ? "create" : "exec";
  Result<> adopted = co_await adopt(std::move(ref), std::move(member), pid);
  if (adopted) co_return adopted;
  co_return fail(std::move(adopted).error().context(
      "OCI runtime {} failed: the process {} of its pid file", verb, pid));
}

Task<Result<>> OciDriver::create(ContainerPlan plan, const Stdio& stdio) {
  auto entry = std::make_shared<OciEntry>();
  CO_TRY(entry->runtime, runtimes_.find(plan.runtime));
  entry->sandbox_id = plan.sandbox_id;
  entry->dir = plan.dir;
  entry->rootfs = plan.rootfs;
  entry->timeline = plan.timeline;
  enter(plan.id, entry);

  CO_CHECK(plan.spec.set_root_path(plan.rootfs));
  CO_CHECK(clamp_oom_score(plan.spec));
  CO_TRY(const std::string cgroups_path, plan.spec.cgroups_path());
  // A create that fails, or is killed, may leave its child there: remove() kills it.
  entry->cgroups = planned_cgroups(cgroups_path, plan.id);
  CO_TRY(entry->poststart_hooks, plan.spec.has_poststart_hooks());
  pool_.submit(os::prepare_cgroup_move);
  CO_CHECK(co_await mount_rootfs(plan));

  oci::CreateArgs args;
  args.timeline = plan.timeline;
  args.id = plan.id;
  args.pod = plan.sandbox_id;
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
  CO_TRY(const pid_t pid, co_await entry->runtime->create(std::move(args)));
  CO_CHECK(failpoint_result("container.runtime"));
  ProcessRef init;
  init.container = plan.id;
  Span adopting(plan.timeline, "adopt the init");
  CO_CHECK(co_await adopt_left(std::move(init), entry->init, pid));
  adopting.end();
  CO_CHECK(failpoint_result("container.adopted"));
  const Span looking(plan.timeline, "its cgroups");
  CO_TRY(entry->cgroups, os::own_cgroups_of(pid));
  entry->systemd_unit = os::systemd_unit_of(cgroups_path);
  co_return Result<>();
}

Task<Result<>> OciDriver::start(std::string container) {
  const OciEntryPtr entry = find_oci(container);
  if (!entry || !entry->init->process) {
    ProcessRef init;
    init.container = container;
    co_return fail(gone(init));
  }
  const bool went_on = co_await start_without_exec(entry, container);
  if (went_on) co_return Result<>();
  Result<> started = co_await entry->runtime->start(container, entry->sandbox_id,
                                                    log_path(entry->dir), entry->timeline);
  if (started) co_return started;
  // An earlier daemon died after its runtime had let the init go, which takes this FIFO away
  // (runc's and crun's exec.fifo): the runtime refuses to do it again.
  const std::string runtime_state = entry->runtime->config().root + "/" + container;
  const bool known = ::access(runtime_state.c_str(), F_OK) == 0;
  const bool let_go = ::access((runtime_state + "/exec.fifo").c_str(), F_OK) != 0;
  if (!known || !let_go) co_return started;
  log::debug({"", container}, "started before: {}", started.error().message);
  co_return Result<>();
}

Task<bool> OciDriver::start_without_exec(OciEntryPtr entry, std::string container) {
  std::string runtime_state = entry->runtime->config().root + "/" + container;
  if (entry->poststart_hooks || !oci::has_runc_fifo(runtime_state)) co_return false;
  const Span letting(entry->timeline, "let the init go");
  const Result<> started =
      co_await oci::let_init_go(holder_, pool_, start_name(container), std::move(runtime_state),
                                *entry->init->process, kLetGoTimeout);
  if (!started) {
    log::debug({"", container}, "{}; asking the OCI runtime", started.error().message);
  }
  co_return started.has_value();
}

oci::ExecArgs OciDriver::exec_args(const ExecPlan& plan) const {
  oci::ExecArgs args;
  args.id = plan.ref.container;
  if (const OciEntryPtr entry = find_oci(plan.ref.container)) args.pod = entry->sandbox_id;
  args.exec = plan.ref.exec;
  args.process_file = plan.process_file;
  args.pid_file = exec_path(plan.dir, plan.ref.exec, "pid");
  args.log_file = exec_path(plan.dir, plan.ref.exec, "log");
  return args;
}

Task<Result<>> OciDriver::exec(ExecPlan plan, const Stdio& stdio) {
  const OciEntryPtr entry = find_oci(plan.ref.container);
  if (!entry) co_return fail(gone(plan.ref));
  pool_.submit(os::prepare_cgroup_move);
  oci::ExecArgs args = exec_args(plan);
  args.stdin_fd = stdio.stdin_fd();
  args.stdout_fd = stdio.stdout_fd();
  args.stderr_fd = stdio.stderr_fd();
  args.console_socket = stdio.console_socket();
  CO_TRY(const pid_t pid, co_await entry->runtime->exec(std::move(args)));
  const auto member = std::make_shared<Member>();
  entry->execs[plan.ref.exec] = member;
  co_return co_await adopt_left(plan.ref, member, pid);
}

Task<Result<>> OciDriver::resume_exec(ExecPlan plan) {
  const OciEntryPtr entry = find_oci(plan.ref.container);
  if (!entry) co_return fail(gone(plan.ref));
  CO_TRY(const pid_t pid, co_await entry->runtime->resume_exec(exec_args(plan)));
  // A pid file has no start time: without daemon and keeper the pid may have become another's.
  if (entry->cgroups.empty() || os::in_cgroups(pid, entry->cgroups)) {
    const auto member = std::make_shared<Member>();
    entry->execs[plan.ref.exec] = member;
    Result<> adopted = co_await adopt_left(plan.ref, member, pid);
    if (adopted || adopted.error().code != Code::kNotFound) co_return adopted;
  }
  // It has run: "not found" would have it run again.
  co_return fail(Code::kUnknown,
                 "OCI runtime exec failed: exec {} ran as pid {} and ended while no sandboxer was "
                 "there; how is not known",
                 plan.ref.exec, pid);
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

Task<Result<>> OciDriver::checkpoint(CheckpointPlan plan) {
  const OciEntryPtr entry = find_oci(plan.container);
  if (!entry) co_return fail(Code::kNotFound, "container {} not found", plan.container);
  oci::CheckpointArgs args;
  args.id = plan.container;
  args.pod = entry->sandbox_id;
  args.written = plan.written;
  args.log_file = entry->dir + "/checkpoint.log";
  args.flags.image_path = plan.image_path;
  args.flags.work_path = plan.work_path.empty() ? entry->dir + "/criu" : plan.work_path;
  args.flags.leave_running = !plan.exit;
  args.flags.open_tcp = plan.open_tcp;
  args.flags.external_unix_sockets = plan.external_unix_sockets;
  args.flags.shell_job = plan.terminal;
  args.flags.file_locks = plan.file_locks;
  args.flags.empty_namespaces = std::move(plan.empty_namespaces);
  args.flags.cgroups_mode = std::move(plan.cgroups_mode);
  CO_CHECK(make_dir(args.flags.image_path));
  CO_CHECK(make_dir(args.flags.work_path));
  co_return co_await entry->runtime->checkpoint(std::move(args));
}

Task<Result<>> OciDriver::remove(std::string container) {
  const OciEntryPtr entry = find_oci(container);
  if (!entry) co_return Result<>();
  CO_CHECK(co_await begin_remove(container));
  // The runtime is asked only about what it knows: an exec less for a create that never got there.
  const std::string runtime_state = entry->runtime->config().root + "/" + container;
  if (::access(runtime_state.c_str(), F_OK) == 0) {
    Result<> removed =
        co_await entry->runtime->remove(container, entry->sandbox_id, log_path(entry->dir), false);
    if (!removed) {
      log::debug({"", container}, "{}; again with --force", removed.error().message);
      CO_CHECK(co_await entry->runtime->remove(container, entry->sandbox_id, log_path(entry->dir),
                                               true));
    }
  }
  CO_CHECK(co_await finish_remove(container));
  holder_.drop(start_name(container));
  entry->runtime->forget(container);
  co_return Result<>();
}

Task<Result<bool>> OciDriver::recover(std::string dir,
                                      std::shared_ptr<const state::v1::ContainerState> record) {
  auto entry = std::make_shared<OciEntry>();
  CO_TRY(entry->runtime, runtimes_.find(record->runtime()));
  recover_entry(entry, dir, *record);
  entry->sandbox_id = record->sandbox_id();
  const auto read_spec = [&dir]() -> Result<oci::Spec> {
    TRY(const std::string config, read_file(config_path(dir)));
    return oci::Spec::parse(config);
  };
  if (record->phase() == state::v1::ContainerState::CREATING) {
    co_await entry->runtime->abandon_create(record->id());
    // What that create had begun is in these, and in no record.
    if (const Result<oci::Spec> spec = read_spec()) {
      entry->cgroups = planned_cgroups(spec->cgroups_path().value_or(""), record->id());
    }
    co_return false;
  }
  if (record->phase() == state::v1::ContainerState::CREATED) {
    const Result<oci::Spec> spec = read_spec();
    entry->poststart_hooks = !spec || spec->has_poststart_hooks().value_or(true);
  }
  ProcessRef init;
  init.container = record->id();
  co_return co_await readopt(std::move(init), entry->init, record->init().pid(),
                             record->init().start_time());
}

}  // namespace kuasar::task
