#include "runc_sandbox.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <set>
#include <utility>
#include <vector>

#include "base/files.h"
#include "base/log.h"
#include "kuasar/state/v1/state.pb.h"
#include "oci/namespace_plan.h"
#include "os/cgroup.h"
#include "os/mount.h"
#include "os/namespaces.h"
#include "os/pidfd.h"
#include "sandbox/pod_files.h"

namespace kuasar::runc {
namespace {

using namespace std::chrono_literals;

constexpr int kReadyTimeoutMs = 5000;
constexpr auto kInitKillTimeout = 5s;
constexpr const char* kShm = "/dev/shm";

// The init says 'R' once it has confined itself, or why it could not.
Result<> read_ready(int fd) {
  pollfd entry{fd, POLLIN, 0};
  if (::poll(&entry, 1, kReadyTimeoutMs) != 1) {
    return fail(Code::kDeadlineExceeded, "kuasar-pid-init is not ready after {} ms",
                kReadyTimeoutMs);
  }
  char text[256];
  const ssize_t n = ::read(fd, text, sizeof text);
  if (n == 1 && text[0] == 'R') return {};
  return fail(Code::kInternal, "kuasar-pid-init: {}",
              n > 0 ? std::string_view(text, static_cast<std::size_t>(n))
                    : std::string_view("it ended before it was ready"));
}

Result<UniqueFd> open_namespace(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return fail_errno("open", path);
  return fd;
}

// What a pin must be before a container may be given it.
std::optional<std::string> verified(const std::string& path) {
  if (!os::is_namespace_pin(path)) return std::nullopt;
  return path;
}

Result<> check_container(const oci::Spec& spec) {
  TRY(const std::string selinux, spec.selinux_label());
  if (!selinux.empty()) {
    return fail(Code::kUnimplemented,
                "linux.security_context.selinux_options: SELinux labels are not supported yet");
  }
  TRY(const bool uids, spec.has_uid_mappings());
  TRY(const bool gids, spec.has_gid_mappings());
  TRY(const bool idmapped, spec.has_idmapped_mounts());
  if (uids || gids || idmapped) {
    return fail(Code::kUnimplemented,
                "linux.security_context.namespace_options.userns_options: user namespaces are not "
                "supported yet");
  }
  return {};
}

}  // namespace

RuncSandbox::RuncSandbox(PodTools& tools, const state::v1::SandboxState& record)
    : tools_(tools),
      record_(record),
      own_cgroups_(record.own_cgroups().begin(), record.own_cgroups().end()) {
  if (record.phase() != state::v1::SandboxState::CREATED) return;
  // check() has accepted the path.
  own_cgroups_ = os::missing_cgroups(record.config().linux().cgroup_parent())
                     .value_or(std::vector<std::string>());
}

std::string RuncSandbox::pin(std::string_view kind) const {
  return tools_.paths.namespace_pin(record_.id(), kind);
}

std::string RuncSandbox::pid_init_key() const {
  return record_.id() + "/pid-init";
}

Task<Result<>> RuncSandbox::start() {
  auto make = [this] { return make_pod(); };
  co_return co_await tools_.pool.run(std::move(make));
}

Result<> RuncSandbox::make_pod() const {
  const bool host_network = sandbox::uses_host_network(record_.config());
  TRY(const sandbox::HostFiles host, sandbox::read_host_files());
  TRY(const sandbox::PodFiles files, sandbox::plan_pod_files(record_.config(), host));
  TRY(sandbox::SysctlPlan sysctls, sandbox::plan_sysctls(record_.config(), tools_.default_sysctls));
  CHECK_OK(os::make_cgroups(own_cgroups_));
  CHECK_OK(sandbox::write_pod_files(tools_.paths, record_.id(), files));
  CHECK_OK(os::mount_tmpfs(tools_.paths.shm(record_.id()), "shm", 01777, sandbox::kShmSize, true));

  os::PodNamespacePlan plan;
  plan.ipc_pin = pin("ipc");
  plan.sysctls = std::move(sysctls.ipc);
  if (!host_network) {
    if (!os::is_namespace_pin(record_.netns_path())) {
      return fail(Code::kFailedPrecondition, "netns_path \"{}\" is not a network namespace",
                  record_.netns_path());
    }
    plan.uts_pin = pin("uts");
    plan.hostname = files.hostname;
    plan.sysctls.insert(plan.sysctls.end(), sysctls.uts.begin(), sysctls.uts.end());
    plan.netns_path = record_.netns_path();
    plan.net_sysctls = std::move(sysctls.net);
  }
  return os::make_pod_namespaces(plan);
}

Task<Result<>> RuncSandbox::stop() {
  stopping_ = true;
  co_await kill_pid_init();
  stopped_.set();
  auto clean = [this]() -> Result<> {
    for (const char* kind : {"pid", "ipc", "uts"}) CHECK_OK(os::remove_pin(pin(kind)));
    os::remove_empty_cgroups(own_cgroups_);
    return os::unmount_all(tools_.paths.shm(record_.id()));
  };
  co_return co_await tools_.pool.run(std::move(clean));
}

Task<Result<task::Attachment>> RuncSandbox::attach(std::string, std::string dir, oci::Spec spec) {
  CO_CHECK(check_container(spec));
  oci::PodNamespaces pod;
  pod.host_network = sandbox::uses_host_network(record_.config());
  CO_TRY(const oci::PidUse pid_use, oci::classify_pid(spec, pod));
  const bool shared_pid = pid_use == oci::PidUse::kPod;
  if (shared_pid) {
    CO_CHECK(co_await ensure_pid_init());
    pod.pid = verified(pin("pid"));
  }
  pod.ipc = verified(pin("ipc"));
  if (!pod.host_network) {
    pod.uts = verified(pin("uts"));
    pod.net = verified(record_.netns_path());
  }
  CO_CHECK(oci::apply(spec, pod));
  CO_CHECK(add_pod_mounts(spec));
  co_return task::Attachment{std::move(dir), std::move(spec), shared_pid};
}

Result<> RuncSandbox::add_pod_mounts(oci::Spec& spec) const {
  TRY(const bool readonly, spec.root_readonly());
  TRY(const std::vector<oci::Mount> mounts, spec.mounts());
  std::set<std::string> destinations;
  bool default_shm = false;
  for (const oci::Mount& mount : mounts) {
    // containerd's default /dev/shm is private to the container; a pod shares its own.
    if (oci::normalise_destination(mount.destination) == kShm && mount.type == "tmpfs") {
      default_shm = true;
    } else {
      destinations.insert(mount.destination);
    }
  }
  for (const sandbox::InjectedMount& injected :
       sandbox::plan_pod_mounts(tools_.paths, record_.id(), destinations, readonly)) {
    const oci::Mount mount{injected.destination, "bind", injected.source, injected.options};
    if (default_shm && injected.destination == kShm) {
      CHECK_OK(spec.replace_mount(mount));
    } else {
      CHECK_OK(spec.add_mount(mount));
    }
  }
  return {};
}

Task<> RuncSandbox::detach(std::string) {
  co_return;
}

Task<Result<>> RuncSandbox::ensure_pid_init() {
  if (init_) {
    if (init_ended_.is_set()) {
      co_return fail(Code::kFailedPrecondition, "the pod's shared PID namespace has ended");
    }
    co_return Result<>();
  }
  if (init_lost_) {
    co_return fail(Code::kFailedPrecondition, "the pod's shared PID namespace has ended");
  }
  std::vector<std::string> namespaces = {pin("ipc")};
  if (!sandbox::uses_host_network(record_.config())) {
    namespaces.push_back(pin("uts"));
    namespaces.push_back(record_.netns_path());
  }
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) co_return fail_errno("pipe2");
  UniqueFd ready(ends[0]);
  const UniqueFd ready_writer(ends[1]);

  os::ProcessSpec spec;
  spec.program = tools_.pid_init;
  spec.argv = {"kuasar-pid-init", std::to_string(namespaces.size())};
  spec.new_pid_namespace = true;
  spec.new_mount_namespace = true;
  spec.fds.push_back({ready_writer.get(), 3});
  std::vector<UniqueFd> opened;
  for (const std::string& path : namespaces) {
    CO_TRY(UniqueFd fd, open_namespace(path));
    spec.fds.push_back({fd.get(), 4 + static_cast<int>(opened.size())});
    opened.push_back(std::move(fd));
  }
  co_await end_unknown_pid_init();
  CO_TRY(os::Process process, co_await tools_.spawner.spawn(pid_init_key(), std::move(spec)));
  auto await_ready = [fd = ready.get()] { return read_ready(fd); };
  Result<> confined = co_await tools_.pool.run(std::move(await_ready));
  if (confined) confined = os::pin_process_namespace(process.pid, "pid", pin("pid"));
  const Result<unsigned long long> start_time = os::process_start_time(process.pid);
  if (confined && !start_time) confined = fail(start_time.error());
  if (!confined) {
    (void)os::pidfd_signal(process.pidfd.get(), 9);
    co_await tools_.spawner.wait(process);
    tools_.spawner.acknowledge(process);
    (void)os::remove_pin(pin("pid"));
    co_return fail(std::move(confined).error().context("shared PID namespace"));
  }
  init_ = std::move(process);
  init_start_time_ = *start_time;
  init_up_.set();
  co_return Result<>();
}

// An init that an earlier daemon had started and not yet written down when it died: nobody knows
// whether it had confined itself.
Task<> RuncSandbox::end_unknown_pid_init() {
  const Result<os::Process> process = co_await tools_.spawner.find(pid_init_key());
  if (!process) co_return;
  (void)os::pidfd_signal(process->pidfd.get(), 9);
  co_await tools_.spawner.wait(*process);
  tools_.spawner.acknowledge(*process);
  (void)os::remove_pin(pin("pid"));
}

Task<> RuncSandbox::kill_pid_init() {
  if (!init_) {
    const bool adopted = co_await adopt_pid_init();
    if (!adopted) co_return co_await end_unknown_pid_init();
  }
  if (init_ended_.is_set()) co_return;
  if (Result<> sent = os::pidfd_signal(init_->pidfd.get(), 9);
      !sent && sent.error().code != Code::kNotFound) {
    log::error({record_.id(), {}}, "{}", sent.error().message);
  }
  if (!watched_) {
    co_await tools_.spawner.wait(*init_);
    init_ended_.set();
    tools_.spawner.acknowledge(*init_);
  } else {
    const bool ended = co_await init_ended_.wait_for(kInitKillTimeout);
    if (!ended) {
      log::error({record_.id(), {}}, "kuasar-pid-init {} does not end on SIGKILL", init_->pid);
    }
  }
}

Task<os::ExitStatus> RuncSandbox::wait_exit() {
  os::ExitStatus end{255, std::chrono::system_clock::now(), true};
  if (init_lost_) co_return end;
  std::vector<const Event*> events = {&init_up_, &stopped_};
  co_await Event::wait_any(std::move(events));
  end.known = false;
  if (!init_up_.is_set() || stopped_.is_set()) co_return end;
  watched_ = true;
  end = co_await tools_.spawner.wait(*init_);
  if (!os::pidfd_exited(init_->pidfd.get())) {
    end.known = false;
    co_return end;
  }
  init_ended_.set();
  tools_.spawner.acknowledge(*init_);
  end.known = !stopping_;
  co_return end;
}

void RuncSandbox::save(state::v1::SandboxState& record) const {
  *record.mutable_own_cgroups() = {own_cgroups_.begin(), own_cgroups_.end()};
  if (init_ended_.is_set()) record.clear_pid_init();
  if (!init_ || init_start_time_ == 0 || init_ended_.is_set()) return;
  record.mutable_pid_init()->set_pid(init_->pid);
  record.mutable_pid_init()->set_start_time(init_start_time_);
}

// True when the init that the record names is alive and now ours to watch.
Task<bool> RuncSandbox::adopt_pid_init() {
  const pid_t pid = record_.pid_init().pid();
  if (pid <= 0) co_return false;
  Result<os::Process> process = co_await tools_.spawner.adopt(pid_init_key(), pid);
  if (!process) co_return false;
  const Result<unsigned long long> start_time = os::process_start_time(pid);
  if (!start_time || *start_time != record_.pid_init().start_time() ||
      os::pidfd_exited(process->pidfd.get())) {
    co_return false;
  }
  init_ = std::move(*process);
  init_start_time_ = *start_time;
  co_return true;
}

Task<Result<>> RuncSandbox::recover() {
  if (record_.pid_init().pid() <= 0) co_return Result<>();
  const bool adopted = co_await adopt_pid_init();
  if (adopted) {
    init_up_.set();
    co_return Result<>();
  }
  init_lost_ = true;
  co_return fail(Code::kNotFound, "the init of its shared PID namespace has died meanwhile");
}

Result<> RuncSandboxFactory::check(const state::v1::SandboxState& record) const {
  CHECK_OK(sandbox::check_supported(record.config()));
  // Everything that can be refused is refused here, before anything is made.
  TRY(const sandbox::HostFiles host, sandbox::read_host_files());
  TRY([[maybe_unused]] const sandbox::PodFiles files,
      sandbox::plan_pod_files(record.config(), host));
  TRY([[maybe_unused]] const sandbox::SysctlPlan sysctls,
      sandbox::plan_sysctls(record.config(), tools_.default_sysctls));
  TRY([[maybe_unused]] const std::vector<std::string> cgroups,
      os::missing_cgroups(record.config().linux().cgroup_parent()));
  if (sandbox::uses_host_network(record.config()) != record.netns_path().empty()) {
    return fail(
        Code::kInvalidArgument,
        "netns_path \"{}\" does not go with linux.security_context.namespace_options.network",
        record.netns_path().substr(0, 200));
  }
  return {};
}

std::unique_ptr<sandbox::Sandbox> RuncSandboxFactory::make(const state::v1::SandboxState& record) {
  return std::make_unique<RuncSandbox>(tools_, record);
}

}  // namespace kuasar::runc
