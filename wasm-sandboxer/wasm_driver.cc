#include "wasm_driver.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "base/files.h"
#include "base/log.h"
#include "kuasar/state/v1/state.pb.h"
#include "os/cgroup.h"
#include "os/cgroup_files.h"
#include "os/fifo.h"
#include "os/oom_score.h"
#include "os/pidfd.h"
#include "os/pidfd_wait.h"
#include "os/pty.h"
#include "os/systemd_unit.h"

namespace kuasar::wasm {
namespace {

using namespace std::chrono_literals;

// A module of 512 MiB is parsed in less, also on a busy machine.
constexpr auto kLoadTimeout = 60s;
constexpr auto kKillTimeout = 5s;
// Of a pod; containerd passes it on when the handler's pod_annotations say so.
constexpr std::string_view kEngineAnnotation = "io.kuasar.wasm.engine";
// Of a container: containerd's annotations.ImageName.
constexpr std::string_view kImageAnnotation = "io.kubernetes.cri.image-name";
constexpr auto kScopeTimeout = 2s;
// How a child ends that nobody can start any more (worker/child.cc); also an end of which nothing
// is known.
constexpr int kNeverStarted = 255;

// The start socket of a process, as the holder names it.
std::string control_name(const task::ProcessRef& ref) {
  return fmt::format("wasm/{}/{}", ref.container, ref.exec.empty() ? "-" : ref.exec);
}

// The streams go with the launch: our own descriptors of them stay the Stdio's.
Result<> add_streams(Launch& launch, const task::Stdio& stdio) {
  if (stdio.terminal()) {
    TRY(const os::Terminal terminal, os::make_terminal());
    CHECK_OK(os::send_console(stdio.console_socket(), terminal.master.get()));
    for (std::int32_t& stream : launch.plan.streams) {
      TRY(UniqueFd slave, os::duplicate(terminal.slave.get()));
      stream = launch.add(std::move(slave));
    }
    launch.plan.terminal = true;
    return {};
  }
  const int fds[] = {stdio.stdin_fd(), stdio.stdout_fd(), stdio.stderr_fd()};
  for (int i = 0; i < 3; ++i) {
    if (fds[i] < 0) continue;
    TRY(UniqueFd stream, os::duplicate(fds[i]));
    launch.plan.streams[i] = launch.add(std::move(stream));
  }
  return {};
}

// Of a module: the same image has another one under another path.
std::string name_of(const std::string& image, const Plan& plan) {
  if (image.empty()) return "";
  return image + "\n" + (plan.module.front() == '/' ? "" : plan.cwd + "/") + plan.module;
}

// Zygotes of modules have no network: what is of no pod's has the host's.
Result<> join_own_network(Launch& launch) {
  UniqueFd network(::open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC));
  if (!network) return fail_errno("open", "/proc/self/ns/net");
  launch.plan.namespaces.insert(launch.plan.namespaces.begin(), launch.add(std::move(network)));
  return {};
}

// systemd forgets a scope when it has seen the end of its last process.
Task<> await_end_of(const Scope& scope) {
  const std::string path = os::cgroup_path_of(scope.cgroups_path);
  const auto until = std::chrono::steady_clock::now() + kScopeTimeout;
  while (std::chrono::steady_clock::now() < until) {
    const Result<std::vector<std::string>> left = os::cgroups_at(path);
    if (!left || left->empty()) co_return;
    co_await sleep_for(5ms);
  }
}

}  // namespace

WasmDriver::WasmDriver(os::Spawner& spawner, BlockingPool& pool, os::FdHolder& holder,
                       std::vector<EngineConfig> engines, const std::string& worker,
                       RunMode standard, Limits limits)
    : HostDriver(spawner, pool),
      holder_(holder),
      cache_(spawner, pool, limits.cache),
      modules_(spawner, cache_, limits.zygotes),
      standard_(std::move(standard)) {
  for (EngineConfig& engine : engines) {
    const std::string name = engine.name;
    zygotes_[name] = std::make_unique<EngineZygote>(spawner, std::move(engine), worker);
  }
}

std::vector<EngineZygote*> WasmDriver::engines() const {
  std::vector<EngineZygote*> zygotes;
  for (const auto& [name, zygote] : zygotes_) zygotes.push_back(zygote.get());
  return zygotes;
}

WasmDriver::WasmEntryPtr WasmDriver::find_wasm(const std::string& container) const {
  return std::static_pointer_cast<WasmEntry>(find(container));
}

Result<RunMode> WasmDriver::mode_named(const std::string& name, std::string_view where) const {
  RunMode mode = parse_mode(name, standard_);
  if (zygotes_.contains(mode.engine)) return mode;
  std::string known;
  for (const auto& [engine, zygote] : zygotes_) known += (known.empty() ? "" : ", ") + engine;
  return fail(Code::kInvalidArgument, "{}: there is no WebAssembly engine \"{}\"; there is {}",
              where, mode.engine.substr(0, 100), known);
}

Result<std::string> WasmDriver::runtime_for(const std::string& binary) {
  TRY(const RunMode mode, mode_named(binary, "options.BinaryName"));
  return to_string(mode);
}

void WasmDriver::save(const std::string& container, state::v1::ContainerState& record) {
  HostDriver::save(container, record);
  if (const WasmEntryPtr entry = find_wasm(container)) record.set_runtime(to_string(entry->mode));
}

// The child, and our end of its control socket.
Task<Result<pid_t>> WasmDriver::make_child(task::ProcessRef ref, Zygote& zygote, Launch& launch,
                                           UniqueFd& control) {
  CO_TRY(SocketPair pair, make_socket_pair());
  control = std::move(pair.ours);
  CO_CHECK(holder_.hold(control_name(ref), control.get()));
  launch.fds[kControlFd] = std::move(pair.theirs);
  co_return co_await zygote.make_child(launch.request, launch.fds);
}

ModuleZygotePtr WasmDriver::find_module(EngineZygote& engine, const std::string& name,
                                        const Plan& plan, const task::Stdio& stdio) {
  // A user namespace has users of its own, and a terminal is given away but once.
  if (name.empty() || plan.user_namespace != kNone || stdio.terminal()) return nullptr;
  return modules_.find(engine, name, {"", plan.uid, plan.gid, plan.memory_pages});
}

Task<Result<>> WasmDriver::launch(const Start& start, const task::Stdio& stdio) {
  const auto found = zygotes_.find(start.mode.engine);
  if (found == zygotes_.end()) {
    co_return fail(Code::kFailedPrecondition, "there is no WebAssembly engine \"{}\"",
                   start.mode.engine);
  }
  EngineZygote& engine = *found->second;
  CO_TRY(Launch launch, co_await start.gather());
  const std::string name = start.mode.modules ? name_of(start.image, launch.plan) : "";
  if (const ModuleZygotePtr zygote = find_module(engine, name, launch.plan, stdio)) {
    const Result<Readiness> ready =
        co_await launch_by_module(start, *zygote, std::move(launch), stdio);
    if (ready) co_return Result<>();
    if (ready.error().code == Code::kAborted) {
      modules_.forget(engine, name);
    } else {
      log::warning({"", start.ref.container}, "made without the zygote of its module: {}",
                   ready.error().message);
      modules_.give_up(*zygote);
    }
    CO_TRY(launch, co_await start.gather());
  }
  if (cache_.is_open()) {
    CO_TRY(UniqueFd dir, cache_.directory());
    launch.plan.cache = launch.add(std::move(dir));
  }
  CO_TRY(const Readiness ready, co_await launch_by(start, engine, std::move(launch), stdio));
  if (ready.native) {
    modules_.learn(engine, name, ready.digest);
  } else if (!ready.digest.empty()) {
    want_code(engine, start, ready.digest);
  }
  co_return Result<>();
}

Task<Result<Readiness>> WasmDriver::launch_by_module(const Start& start, Zygote& zygote,
                                                     Launch launch, const task::Stdio& stdio) {
  const std::optional<Scope> scope = launch.scope;
  CO_CHECK(join_own_network(launch));
  Start scored = start;
  if (!scored.oom_score_adj) {
    // As of the engine's: not the zygote's own.
    CO_TRY(scored.oom_score_adj, os::oom_score_adj_of(::getpid()));
  }
  Result<Readiness> ready = co_await launch_by(scored, zygote, std::move(launch), stdio);
  if (ready) co_return ready;
  // Nothing of it may be in the way of the next attempt.
  co_await end_process(start.ref, start.member);
  if (start.member->process) spawner_.acknowledge(*start.member->process);
  *start.member = {};
  if (scope) co_await await_end_of(*scope);
  co_return ready;
}

Task<Result<Readiness>> WasmDriver::launch_by(const Start& start, Zygote& zygote, Launch launch,
                                              const task::Stdio& stdio) {
  const task::ProcessRef& ref = start.ref;
  const MemberPtr member = start.member;
  CO_CHECK(add_streams(launch, stdio));
  CO_TRY(launch.fds[kPlanFd], plan_file(launch.plan));
  UniqueFd control;
  Result<pid_t> pid = co_await make_child(ref, zygote, launch, control);
  if (!pid && pid.error().code == Code::kUnavailable) {
    log::warning({"", ref.container}, "{}", pid.error().message);
    pid = co_await make_child(ref, zygote, launch, control);
  }
  // The child has them; a pipe that we hold would never end.
  launch.fds.clear();
  if (!pid) co_return fail(std::move(pid).error());
  CO_CHECK(co_await adopt(ref, member, *pid));
  if (start.oom_score_adj) {
    Result<> set = os::write_control(fmt::format("/proc/{}/oom_score_adj", *pid),
                                     std::to_string(*start.oom_score_adj));
    // One that has ended says why.
    if (!set && !os::pidfd_exited(member->process->pidfd.get())) {
      co_return fail(std::move(set).error());
    }
  }
  if (launch.scope) {
    auto enter = [scope = *launch.scope, pid = *pid] { return enter_scope(scope, pid); };
    Result<> entered = co_await pool_.run(std::move(enter));
    if (!entered) co_return fail(std::move(entered).error().context("make its scope"));
    // One that has ended says why.
    (void)!::send(control.get(), "C", 1, MSG_NOSIGNAL | MSG_DONTWAIT);
  }
  Result<std::string> ready =
      co_await await_ready(control.get(), kLoadTimeout, "the module's process");
  if (!ready && ready.error().code == Code::kUnavailable) {
    // Its socket has ended, which it may close by itself.
    (void)os::pidfd_signal(member->process->pidfd.get(), SIGKILL);
    const bool ended = co_await os::pidfd_wait_for(member->process->pidfd.get(), kKillTimeout);
    if (!ended) {
      co_return fail(Code::kDeadlineExceeded,
                     "the process that loads the module (pid {}) is "
                     "silent and does not end on SIGKILL",
                     member->pid);
    }
    const os::ExitStatus end = co_await spawner_.wait(*member->process);
    co_return fail(Code::kResourceExhausted,
                   "the process that loads the module was ended ({}): has it enough memory?",
                   end.code > 128 ? fmt::format("signal {}", end.code - 128)
                                  : fmt::format("exit code {}", end.code));
  }
  if (!ready) co_return fail(std::move(ready).error());
  co_return decode_readiness(*ready);
}

Task<Result<>> WasmDriver::create(task::ContainerPlan plan, const task::Stdio& stdio) {
  auto entry = std::make_shared<WasmEntry>();
  entry->mode = parse_mode(plan.runtime, standard_);
  entry->sandbox_id = plan.sandbox_id;
  entry->dir = plan.dir;
  entry->rootfs = plan.rootfs;
  entry->timeline = plan.timeline;
  enter(plan.id, entry);

  if (plan.rootfs_mounts.empty()) {
    co_return fail(Code::kUnimplemented,
                   "rootfs: the image has no file system; OCI artifacts of WebAssembly are not "
                   "supported, put the module into an ordinary image");
  }
  CO_TRY(const std::optional<std::string> engine, plan.spec.annotation(kEngineAnnotation));
  if (engine) {
    const RunMode mode{*engine, entry->mode.modules};
    CO_TRY(entry->mode, mode_named(to_string(mode), kEngineAnnotation));
  }
  CO_TRY(const std::optional<std::string> image, plan.spec.annotation(kImageAnnotation));
  entry->image = image.value_or("");
  CO_CHECK(clamp_oom_score(plan.spec));
  CO_TRY(ContainerBlueprint blueprint, plan_container(plan.spec));
  std::optional<Scope> scope;
  if (oci::is_systemd_cgroups_path(blueprint.cgroups_path)) {
    scope = Scope{blueprint.cgroups_path, blueprint.limits};
    // systemd moves the process; without it the child enters its cgroups by itself, and waits for
    // nothing.
    pool_.submit(os::prepare_cgroup_move);
  }
  CO_CHECK(co_await mount_rootfs(plan));
  const std::string path = os::cgroup_path_of(blueprint.cgroups_path);
  auto make_cgroups = [path, limits = blueprint.limits]() -> Result<std::vector<std::string>> {
    TRY(std::vector<std::string> dirs, os::make_container_cgroups(path));
    if (!dirs.empty()) CHECK_OK(os::write_limits(dirs, limits));
    return dirs;
  };
  // Also what is half made is remove()'s to take away.
  entry->systemd_unit = os::systemd_unit_of(blueprint.cgroups_path);
  CO_TRY(entry->cgroups, os::container_cgroups(path));
  if (!scope) {
    CO_TRY(entry->cgroups, co_await pool_.run(std::move(make_cgroups), plan.timeline, "cgroups"));
  }
  blueprint.plan.held = scope.has_value();
  Start start{
      {}, entry->init, entry->mode, entry->image, entry->sandbox_id, blueprint.oom_score_adj, {}};
  start.ref.container = plan.id;
  start.gather = [&]() -> Task<Result<Launch>> {
    auto gather = [&] {
      return gather_container(blueprint, plan.rootfs,
                              scope ? std::vector<std::string>() : entry->cgroups.paths());
    };
    CO_TRY(Launch gathered, co_await pool_.run(std::move(gather), plan.timeline, "open the files"));
    gathered.scope = scope;
    co_return gathered;
  };
  const Span launching(plan.timeline, "launch by a zygote");
  CO_CHECK(co_await launch(start, stdio));
  // Which hierarchies have a scope is known now.
  if (!entry->systemd_unit.empty()) {
    CO_TRY(entry->cgroups, os::cgroups_at(path));
  }
  co_return Result<>();
}

void WasmDriver::want_code(EngineZygote& engine, const Start& start, const std::string& digest) {
  Result<UniqueFd> module = os::pidfd_getfd(start.member->process->pidfd.get(), kModuleFd);
  if (module) {
    cache_.want(engine, digest, std::move(*module), start.pod);
  } else {
    log::warning({}, "a module is not compiled: {}", module.error().message);
  }
}

// The daemon that made a process may have died before it heard that the module is refused.
Result<> WasmDriver::heed_refusal(const task::ProcessRef& ref) {
  TRY(const UniqueFd control, holder_.get(control_name(ref)));
  char words[kMaxWords];
  const ssize_t size = ::recv(control.get(), words, sizeof words, MSG_DONTWAIT);
  if (size <= 1 || words[0] != 'E') return {};
  return fail(Code::kFailedPrecondition, "{}",
              std::string_view(words + 1, static_cast<std::size_t>(size) - 1));
}

Result<> WasmDriver::let_go(const task::ProcessRef& ref) {
  const std::string name = control_name(ref);
  const Result<UniqueFd> control = holder_.get(name);
  if (!control) {
    return fail(Code::kFailedPrecondition, "it cannot be started: its socket is lost ({})",
                control.error().message);
  }
  // The other end is gone once the process runs: an earlier daemon came that far.
  const bool sent = ::send(control->get(), "S", 1, MSG_NOSIGNAL | MSG_DONTWAIT) == 1;
  if (!sent && errno != EPIPE && errno != ECONNRESET) return fail_errno("start", name);
  holder_.drop(name);
  return {};
}

Task<Result<>> WasmDriver::start(std::string container) {
  task::ProcessRef init;
  init.container = std::move(container);
  const WasmEntryPtr entry = find_wasm(init.container);
  if (!entry || !entry->init->process) co_return fail(gone(init));
  const Result<UniqueFd> control = holder_.get(control_name(init));
  if (control || control.error().code != Code::kNotFound) co_return let_go(init);
  // An earlier daemon came further: it drops the socket once it has used it. One that was lost
  // before ends its process.
  const os::Process& process = *entry->init->process;
  if (!os::pidfd_exited(process.pidfd.get())) co_return Result<>();
  const os::ExitStatus end = co_await spawner_.wait(process);
  if (end.code != kNeverStarted) co_return Result<>();
  co_return fail(Code::kFailedPrecondition,
                 "container {} cannot be started any more: its socket is lost and its process has "
                 "ended ({})",
                 init.container, end.known ? "as one does that nobody starts" : "how is not known");
}

Task<> WasmDriver::end_process(const task::ProcessRef& ref, MemberPtr member) {
  holder_.drop(control_name(ref));
  if (!member->process) co_return;
  (void)os::pidfd_signal(member->process->pidfd.get(), SIGKILL);
  const bool ended = co_await os::pidfd_wait_for(member->process->pidfd.get(), kKillTimeout);
  if (!ended) {
    log::error({"", ref.container}, "process {} does not end on SIGKILL", member->pid);
  }
}

Task<Result<>> WasmDriver::exec(task::ExecPlan plan, const task::Stdio& stdio) {
  const WasmEntryPtr entry = find_wasm(plan.ref.container);
  if (!entry || !entry->init->process) co_return fail(gone(plan.ref));
  CO_TRY(const std::string json, read_file(plan.process_file));
  CO_TRY(Plan process, plan_process(json));
  // What was read and opened of its pid before was its own.
  const auto lives = [&]() -> Result<> {
    if (!os::pidfd_exited(entry->init->process->pidfd.get())) return {};
    return fail(Code::kFailedPrecondition, "container {} has ended", plan.ref.container);
  };
  const auto gather = [&]() -> Task<Result<Launch>> {
    auto open = [&] { return gather_process(process, entry->init->pid, entry->cgroups); };
    Result<Launch> gathered = co_await pool_.run(std::move(open));
    CO_CHECK(lives());
    co_return gathered;
  };
  const Result<int> score = os::oom_score_adj_of(entry->init->pid);
  CO_CHECK(lives());
  if (!score) co_return fail(score.error());
  const auto member = std::make_shared<Member>();
  entry->execs[plan.ref.exec] = member;
  const Start start{plan.ref, member, entry->mode, entry->image, entry->sandbox_id, *score, gather};
  Result<> done = co_await launch(start, stdio);
  if (done) done = let_go(plan.ref);
  if (!done) {
    co_await end_process(plan.ref, member);
    forget_exec(plan.ref);
  }
  co_return done;
}

Task<Result<>> WasmDriver::resume_exec(task::ExecPlan plan) {
  const WasmEntryPtr entry = find_wasm(plan.ref.container);
  if (!entry) co_return fail(gone(plan.ref));
  Result<os::Process> known = co_await spawner_.find(process_key(plan.ref));
  if (!known) {
    // A child that has no name yet ends when nobody can start it.
    holder_.drop(control_name(plan.ref));
    co_return fail(gone(plan.ref));
  }
  const auto member = std::make_shared<Member>();
  entry->execs[plan.ref.exec] = member;
  member->pid = known->pid;
  member->start_time = os::process_start_time(known->pid).value_or(0);
  member->process = std::move(*known);
  // The socket is dropped when it has been let go.
  if (!holder_.get(control_name(plan.ref))) co_return Result<>();
  Result<> done = heed_refusal(plan.ref);
  if (done) done = let_go(plan.ref);
  if (!done) {
    co_await end_process(plan.ref, member);
    forget_exec(plan.ref);
  }
  co_return done;
}

void WasmDriver::forget_exec(const task::ProcessRef& ref) {
  const EntryPtr entry = find(ref.container);
  if (!entry) return;
  const MemberPtr member = find(ref);
  if (member && member->process) spawner_.acknowledge(*member->process);
  holder_.drop(control_name(ref));
  entry->execs.erase(ref.exec);
}

Task<Result<>> WasmDriver::checkpoint(task::CheckpointPlan) {
  co_return fail(Code::kUnimplemented, "checkpoint: not supported for WebAssembly");
}

Task<Result<>> WasmDriver::remove(std::string container) {
  const WasmEntryPtr entry = find_wasm(container);
  if (!entry) co_return Result<>();
  CO_CHECK(co_await begin_remove(container));
  task::ProcessRef ref;
  ref.container = container;
  co_await end_process(ref, entry->init);
  for (const auto& [id, member] : entry->execs) {
    ref.exec = id;
    co_await end_process(ref, member);
  }
  co_return co_await finish_remove(container);
}

Task<Result<bool>> WasmDriver::recover(std::string dir,
                                       std::shared_ptr<const state::v1::ContainerState> record) {
  auto entry = std::make_shared<WasmEntry>();
  entry->mode = parse_mode(record->runtime(), standard_);
  entry->sandbox_id = record->sandbox_id();
  recover_entry(entry, dir, *record);
  task::ProcessRef init;
  init.container = record->id();
  if (record->phase() == state::v1::ContainerState::CREATING) {
    // What has no name yet ends with its socket; what has one is remove()'s.
    holder_.drop(control_name(init));
    const Result<std::string> config = read_file(config_path(dir));
    const Result<oci::Spec> spec =
        config ? oci::Spec::parse(*config) : Result<oci::Spec>(fail(config.error()));
    if (spec) {
      const std::string path = os::cgroup_path_of(spec->cgroups_path().value_or(""));
      entry->cgroups = os::container_cgroups(path).value_or(std::vector<std::string>());
    }
    Result<os::Process> known = co_await spawner_.find(process_key(init));
    if (known) {
      entry->init->pid = known->pid;
      entry->init->process = std::move(*known);
    }
    co_return false;
  }
  co_return co_await readopt(std::move(init), entry->init, record->init().pid(),
                             record->init().start_time());
}

}  // namespace kuasar::wasm
