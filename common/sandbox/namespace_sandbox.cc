#include "sandbox/namespace_sandbox.h"

#include <sys/stat.h>
#include <unistd.h>

#include <set>
#include <utility>
#include <vector>

#include "base/failpoint.h"
#include "base/files.h"
#include "base/log.h"
#include "kuasar/state/v1/state.pb.h"
#include "os/cgroup.h"
#include "os/mount.h"
#include "os/namespaces.h"
#include "os/pidfd.h"
#include "os/pidfd_wait.h"
#include "sandbox/pod_files.h"

namespace kuasar::sandbox {
namespace {

using namespace std::chrono_literals;

constexpr auto kInitKillTimeout = 5s;
constexpr const char* kShm = "/dev/shm";

// What a pin must be before a container may be given it.
std::optional<std::string> verified(const std::string& path) {
  if (!os::is_namespace_pin(path)) return std::nullopt;
  return path;
}

bool is_map(const std::vector<oci::IdMapping>& mappings, const IdRange& range) {
  return mappings == std::vector<oci::IdMapping>{{0, range.first, range.count}};
}

}  // namespace

NamespaceSandbox::NamespaceSandbox(PodTools& tools, const state::v1::SandboxState& record)
    : tools_(tools),
      record_(record),
      cgroup_parent_(record.config().linux().cgroup_parent()),
      host_network_(uses_host_network(record.config())),
      host_ipc_(uses_host_ipc(record.config())),
      host_pid_(uses_host_pid(record.config())),
      // check() has accepted it.
      user_namespace_(user_namespace(record.config()).value_or(std::optional<PodUserNamespace>())),
      labels_{record.selinux_label(), record.selinux_mount_label()},
      own_cgroups_(record.own_cgroups().begin(), record.own_cgroups().end()) {
  if (record.phase() != state::v1::SandboxState::CREATED) return;
  // check() has accepted the path.
  own_cgroups_ = os::cgroups_down_to(cgroup_parent_).value_or(std::vector<std::string>());
  std::erase_if(own_cgroups_, [&](const std::string& dir) {
    return ::access(dir.c_str(), F_OK) == 0 && !tools_.made_cgroups.contains(dir);
  });
  tools_.made_cgroups.insert(own_cgroups_.begin(), own_cgroups_.end());
}

std::string NamespaceSandbox::pin(std::string_view kind) const {
  return tools_.paths.namespace_pin(record_.id(), kind);
}

std::string NamespaceSandbox::target_pin(std::string_view container_id) const {
  return tools_.paths.pid_target_pin(record_.id(), container_id);
}

std::vector<std::string> NamespaceSandbox::init_cgroups() const {
  return os::cgroups_below(cgroup_parent_, record_.id());
}

std::string NamespaceSandbox::pid_init_key() const {
  return record_.id() + "/pid-init";
}

Task<Result<>> NamespaceSandbox::start(std::shared_ptr<const runtime::v1::PodSandboxConfig> config,
                                       TimelinePtr timeline) {
  if (!host_network_ && !os::is_namespace_pin(record_.netns_path())) {
    co_return fail(Code::kFailedPrecondition, "netns_path \"{}\" is not a network namespace",
                   record_.netns_path());
  }
  CO_TRY(labels_, selinux_labels(*config, record_.id()));
  auto files = [this, config, timeline] { return make_files(*config, timeline); };
  CO_CHECK(co_await tools_.pool.run(std::move(files), timeline, "files"));
  if (user_namespace_) {
    const Span helping(timeline, "user namespace: helper", SpanKind::kWait);
    UserNamespacePlan plan;
    plan.key = record_.id() + "/user-namespace";
    plan.maps = *user_namespace_;
    plan.netns_path = record_.netns_path();
    plan.user_pin = pin("user");
    if (!host_ipc_) plan.ipc_pin = pin("ipc");
    if (!host_network_) plan.uts_pin = pin("uts");
    CO_CHECK(co_await make_user_namespaces(helper(), std::move(plan)));
    CO_CHECK(failpoint_result("pod.userns"));
  }
  auto namespaces = [this, config, timeline] { return make_namespaces(*config, timeline); };
  co_return co_await tools_.pool.run(std::move(namespaces), timeline, "namespaces");
}

Result<> NamespaceSandbox::make_files(const runtime::v1::PodSandboxConfig& config,
                                      TimelinePtr timeline) const {
  TRY(const HostFiles host, read_host_files());
  TRY(const PodFiles files, plan_pod_files(config, host));
  const PodRoot root = user_namespace_ ? user_namespace_->root() : PodRoot{};
  Span making_cgroups(timeline, "cgroups");
  CHECK_OK(os::make_cgroups(own_cgroups_));
  making_cgroups.end();
  CHECK_OK(failpoint_result("pod.cgroups"));
  CHECK_OK(close_directory());
  Span writing(timeline, "hostname, hosts, resolv.conf");
  CHECK_OK(os::mount_tmpfs(tools_.paths.files(record_.id()), "kuasar-files", 0711,
                           pod_files_room(files), true, ",nr_inodes=16"));
  CHECK_OK(write_pod_files(tools_.paths, record_.id(), files, root, labels_.mount));
  writing.end();
  CHECK_OK(failpoint_result("pod.files"));
  if (host_ipc_) return {};
  const Span mounting(timeline, "/dev/shm");
  std::string more = fmt::format(",uid={},gid={}", root.uid, root.gid);
  if (!labels_.mount.empty()) more += fmt::format(",context=\"{}\"", labels_.mount);
  CHECK_OK(os::mount_tmpfs(tools_.paths.shm(record_.id()), "shm", 01777, kShmSize, true, more));
  return failpoint_result("pod.shm");
}

// What is in it, a world-writable /dev/shm among it, is for root and the pod's root alone: the OCI
// runtime binds it as the latter.
Result<> NamespaceSandbox::close_directory() const {
  const std::string dir = tools_.paths.sandbox(record_.id());
  const gid_t group = user_namespace_ ? user_namespace_->root().gid : 0;
  if (::chown(dir.c_str(), 0, group) != 0) return fail_errno("chown", dir);
  if (::chmod(dir.c_str(), user_namespace_ ? 0710 : 0700) != 0) return fail_errno("chmod", dir);
  return {};
}

Result<> NamespaceSandbox::make_namespaces(const runtime::v1::PodSandboxConfig& config,
                                           TimelinePtr timeline) const {
  TRY(const HostFiles host, read_host_files());
  TRY(const PodFiles files, plan_pod_files(config, host));
  TRY(SysctlPlan sysctls, plan_sysctls(config, tools_.default_sysctls));
  os::PodNamespacePlan plan;
  plan.made = user_namespace_.has_value();
  if (!host_ipc_) plan.ipc_pin = pin("ipc");
  plan.sysctls = std::move(sysctls.ipc);
  if (!host_network_) {
    plan.uts_pin = pin("uts");
    plan.hostname = files.hostname;
    plan.sysctls.insert(plan.sysctls.end(), sysctls.uts.begin(), sysctls.uts.end());
    plan.netns_path = record_.netns_path();
    plan.net_sysctls = std::move(sysctls.net);
  }
  const Span pinning(std::move(timeline), "unshare, sysctls, pins");
  CHECK_OK(os::make_pod_namespaces(plan));
  return failpoint_result("pod.namespaces");
}

Task<Result<>> NamespaceSandbox::stop() {
  stopping_ = true;
  co_await kill_pid_init();
  auto clean = [this]() -> Result<> {
    for (const char* kind : {"pid", "ipc", "uts", "user"}) CHECK_OK(os::remove_pin(pin(kind)));
    os::remove_empty_cgroups(init_cgroups());
    os::remove_empty_cgroups(own_cgroups_);
    CHECK_OK(os::unmount_all(tools_.paths.shm(record_.id())));
    return os::unmount_all(tools_.paths.files(record_.id()));
  };
  Result<> cleaned = co_await tools_.pool.run(std::move(clean));
  for (const std::string& dir : own_cgroups_) {
    if (::access(dir.c_str(), F_OK) != 0) tools_.made_cgroups.erase(dir);
  }
  co_return cleaned;
}

Result<> NamespaceSandbox::check_container(const oci::Spec& spec) const {
  constexpr std::string_view kField = "linux.security_context.namespace_options.userns_options";
  TRY(const std::vector<oci::IdMapping> uids, spec.uid_mappings());
  TRY(const std::vector<oci::IdMapping> gids, spec.gid_mappings());
  TRY(const bool idmapped, spec.has_idmapped_mounts());
  if (!user_namespace_) {
    if (uids.empty() && gids.empty() && !idmapped) return {};
    return fail(Code::kInvalidArgument,
                "{}: the container asks for mapped ids, its pod has no user namespace", kField);
  }
  if (is_map(uids, user_namespace_->uids) && is_map(gids, user_namespace_->gids)) return {};
  return fail(Code::kInvalidArgument, "{}: the container's mappings are not those of its pod",
              kField);
}

// The PID namespace of the target is pinned: the path that containerd has sent is another process's
// as soon as the pid is.
Task<Result<oci::PodNamespaces>> NamespaceSandbox::namespaces_for(oci::PidUse pid_use,
                                                                  std::string container_id,
                                                                  pid_t target) {
  oci::PodNamespaces pod;
  pod.host_network = host_network_;
  pod.host_ipc = host_ipc_;
  pod.host_pid = host_pid_;
  pod.own_user = user_namespace_.has_value();
  if (pid_use == oci::PidUse::kPod) {
    CO_CHECK(co_await ensure_pid_init());
    pod.pid = verified(pin("pid"));
  } else if (pid_use == oci::PidUse::kTarget) {
    CO_CHECK(os::pin_process_namespace(target, "pid", target_pin(container_id)));
    CO_CHECK(failpoint_result("container.target"));
    pod.target_pid = verified(target_pin(container_id));
  }
  if (!host_ipc_) pod.ipc = verified(pin("ipc"));
  if (user_namespace_) pod.user = verified(pin("user"));
  if (!host_network_) {
    pod.uts = verified(pin("uts"));
    pod.net = verified(record_.netns_path());
  }
  co_return pod;
}

Task<Result<task::Attachment>> NamespaceSandbox::attach(std::string container_id, std::string dir,
                                                        oci::Spec spec, TimelinePtr timeline) {
  CO_CHECK(failpoint_result("container.dir"));
  CO_CHECK(check_container(spec));
  oci::PodNamespaces modes;
  modes.host_pid = host_pid_;
  CO_TRY(const oci::PidUse pid_use, oci::classify_pid(spec, modes));
  CO_TRY(const pid_t target, oci::target_pid(spec));
  Span finding(timeline, pid_use == oci::PidUse::kPod ? "pins, shared PID namespace" : "pins");
  Result<oci::PodNamespaces> pod = co_await namespaces_for(pid_use, container_id, target);
  finding.end();
  Span planning(timeline, "spec");
  Result<> applied = pod ? oci::apply(spec, *pod) : fail(std::move(pod).error());
  if (applied) applied = add_pod_mounts(spec);
  planning.end();
  if (!applied) {
    (void)os::remove_pin(target_pin(container_id));
    co_return fail(std::move(applied).error());
  }
  task::Attachment attachment{std::move(dir), std::move(spec), pid_use != oci::PidUse::kContainer};
  if (user_namespace_) {
    attachment.id_map = {pin("user"), user_namespace_->uids.option(),
                         user_namespace_->gids.option()};
  }
  co_return attachment;
}

namespace {

// A sysfs shows a network namespace and is mounted by its owner only: the host's is not the pod's
// root's to mount, but it can be bound. What lies below it comes along, or the kernel refuses.
oci::Mount host_sysfs(oci::Mount mount) {
  mount.type = "bind";
  mount.source = "/sys";
  mount.options.insert(mount.options.end(), {"rbind", "rprivate"});
  return mount;
}

}  // namespace

Result<> NamespaceSandbox::add_pod_mounts(oci::Spec& spec) const {
  TRY(const bool readonly, spec.root_readonly());
  TRY(const std::vector<oci::Mount> mounts, spec.mounts());
  std::set<std::string> destinations;
  bool default_shm = false;
  for (const oci::Mount& mount : mounts) {
    // containerd's default /dev/shm is private to the container; a pod shares its own.
    if (!host_ipc_ && oci::normalise_destination(mount.destination) == kShm &&
        mount.type == "tmpfs") {
      default_shm = true;
    } else {
      destinations.insert(mount.destination);
    }
    if (mount.type == "sysfs" && user_namespace_ && host_network_) {
      CHECK_OK(spec.replace_mount(host_sysfs(mount)));
    }
  }
  for (const InjectedMount& injected :
       plan_pod_mounts(tools_.paths, record_.id(), destinations, readonly, !host_ipc_)) {
    const oci::Mount mount{injected.destination, "bind", injected.source, injected.options};
    if (default_shm && injected.destination == kShm) {
      CHECK_OK(spec.replace_mount(mount));
    } else {
      CHECK_OK(spec.add_mount(mount));
    }
  }
  return {};
}

Task<> NamespaceSandbox::detach(std::string container_id) {
  auto unpin = [path = target_pin(container_id)] { return os::remove_pin(path); };
  if (Result<> done = co_await tools_.pool.run(std::move(unpin)); !done) {
    log::error({record_.id(), container_id}, "{}", done.error().message);
  }
}

Task<Result<>> NamespaceSandbox::ensure_pid_init() {
  if (init_) {
    if (init_ended_.is_set()) {
      co_return fail(Code::kFailedPrecondition, "the pod's shared PID namespace has ended");
    }
    co_return Result<>();
  }
  if (init_lost_) {
    co_return fail(Code::kFailedPrecondition, "the pod's shared PID namespace has ended");
  }
  PidInitPlan plan;
  plan.key = pid_init_key();
  if (user_namespace_) plan.user_pin = pin("user");
  if (!host_ipc_) plan.namespaces.push_back(pin("ipc"));
  if (!host_network_) {
    plan.namespaces.push_back(pin("uts"));
    plan.namespaces.push_back(record_.netns_path());
  }
  co_await end_unknown_pid_init();
  Result<os::Process> started = co_await start_pid_init(helper(), std::move(plan));
  if (!started) co_return fail(std::move(started).error().context("shared PID namespace"));
  os::Process process = std::move(*started);
  Result<> pinned = os::pin_process_namespace(process.pid, "pid", pin("pid"));
  const Result<unsigned long long> start_time = os::process_start_time(process.pid);
  if (pinned && !start_time) pinned = fail(start_time.error());
  if (pinned) pinned = failpoint_result("container.pid-init");
  if (!pinned) {
    (void)os::pidfd_signal(process.pidfd.get(), 9);
    co_await tools_.spawner.wait(process);
    tools_.spawner.acknowledge(process);
    (void)os::remove_pin(pin("pid"));
    co_return fail(std::move(pinned).error().context("shared PID namespace"));
  }
  // Out of the keeper's cgroup: it is the pod's, and what systemd kills of that unit is not.
  auto enter = [pid = process.pid, dirs = init_cgroups()]() -> Result<> {
    os::enter_cgroups(pid, dirs);
    return {};
  };
  (void)co_await tools_.pool.run(std::move(enter));
  init_ = std::move(process);
  init_start_time_ = *start_time;
  co_return Result<>();
}

// An init that an earlier daemon had started and not yet written down when it died: nobody knows
// whether it had confined itself.
Task<> NamespaceSandbox::end_unknown_pid_init() {
  const Result<os::Process> process = co_await tools_.spawner.find(pid_init_key());
  if (!process) co_return;
  (void)os::pidfd_signal(process->pidfd.get(), 9);
  const bool ended = co_await os::pidfd_wait_for(process->pidfd.get(), kInitKillTimeout);
  if (!ended) co_return log_unkillable(process->pid);
  tools_.spawner.acknowledge(*process);
  (void)os::remove_pin(pin("pid"));
}

void NamespaceSandbox::log_unkillable(pid_t pid) const {
  log::error({record_.id(), {}}, "kuasar-pid-init {} does not end on SIGKILL", pid);
}

Task<> NamespaceSandbox::kill_pid_init() {
  if (!init_) {
    if (record_.pid_init().pid() <= 0) co_return co_await end_unknown_pid_init();
    // One that is not adopted has ended; its pid may be another's by now.
    const bool adopted = co_await adopt_pid_init();
    if (!adopted) co_return;
  }
  if (init_ended_.is_set()) co_return;
  if (Result<> sent = os::pidfd_signal(init_->pidfd.get(), 9);
      !sent && sent.error().code != Code::kNotFound) {
    log::error({record_.id(), {}}, "{}", sent.error().message);
  }
  if (!watched_) {
    const bool ended = co_await os::pidfd_wait_for(init_->pidfd.get(), kInitKillTimeout);
    if (!ended) co_return log_unkillable(init_->pid);
    init_ended_.set();
    tools_.spawner.acknowledge(*init_);
  } else {
    const bool ended = co_await init_ended_.wait_for(kInitKillTimeout);
    if (!ended) log_unkillable(init_->pid);
  }
}

Task<os::ExitStatus> NamespaceSandbox::wait_exit() {
  os::ExitStatus end{255, std::chrono::system_clock::now(), true};
  if (init_lost_) co_return end;
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

std::vector<oci::NamespaceEntry> NamespaceSandbox::namespaces() const {
  std::vector<oci::NamespaceEntry> all;
  if (!host_network_) {
    all.push_back({"network", record_.netns_path()});
    all.push_back({"uts", pin("uts")});
  }
  if (!host_ipc_) all.push_back({"ipc", pin("ipc")});
  if (pid() > 0) all.push_back({"pid", pin("pid")});
  if (user_namespace_) all.push_back({"user", pin("user")});
  return all;
}

pid_t NamespaceSandbox::pid() const {
  return init_ && !init_ended_.is_set() ? init_->pid : 0;
}

void NamespaceSandbox::save(state::v1::SandboxState& record) const {
  record.set_selinux_label(labels_.process);
  record.set_selinux_mount_label(labels_.mount);
  *record.mutable_own_cgroups() = {own_cgroups_.begin(), own_cgroups_.end()};
  if (init_ended_.is_set()) record.clear_pid_init();
  if (!init_ || init_start_time_ == 0 || init_ended_.is_set()) return;
  record.mutable_pid_init()->set_pid(init_->pid);
  record.mutable_pid_init()->set_start_time(init_start_time_);
}

// True when the init that the record names is alive and now ours to watch.
Task<bool> NamespaceSandbox::adopt_pid_init() {
  const pid_t pid = record_.pid_init().pid();
  if (pid <= 0) co_return false;
  const unsigned long long start_time = record_.pid_init().start_time();
  std::optional<os::Process> process =
      co_await os::readopt(tools_.spawner, pid_init_key(), pid, start_time);
  if (!process || os::pidfd_exited(process->pidfd.get())) co_return false;
  init_ = std::move(*process);
  init_start_time_ = start_time;
  co_return true;
}

Task<Result<>> NamespaceSandbox::recover() {
  tools_.made_cgroups.insert(own_cgroups_.begin(), own_cgroups_.end());
  // A daemon of an earlier version left it open.
  if (Result<> closed = close_directory(); !closed) {
    log::warning({record_.id(), {}}, "{}", closed.error().message);
  }
  if (record_.pid_init().pid() <= 0) co_return Result<>();
  const bool adopted = co_await adopt_pid_init();
  if (adopted) co_return Result<>();
  init_lost_ = true;
  co_return fail(Code::kNotFound, "the init of its shared PID namespace has died meanwhile");
}

Result<> NamespaceSandboxFactory::check(const state::v1::SandboxState& record) const {
  CHECK_OK(check_supported(record.config()));
  CHECK_OK(check_selinux_options(record.config()));
  TRY([[maybe_unused]] const std::optional<PodUserNamespace> user_namespace,
      user_namespace(record.config()));
  // Everything that can be refused is refused here, before anything is made.
  TRY(const HostFiles host, read_host_files());
  TRY([[maybe_unused]] const PodFiles files, plan_pod_files(record.config(), host));
  TRY([[maybe_unused]] const SysctlPlan sysctls,
      plan_sysctls(record.config(), tools_.default_sysctls));
  TRY([[maybe_unused]] const std::vector<std::string> cgroups,
      os::missing_cgroups(record.config().linux().cgroup_parent()));
  if (uses_host_network(record.config()) != record.netns_path().empty()) {
    return fail(
        Code::kInvalidArgument,
        "netns_path \"{}\" does not go with linux.security_context.namespace_options.network",
        record.netns_path().substr(0, 200));
  }
  return {};
}

std::unique_ptr<Sandbox> NamespaceSandboxFactory::make(const state::v1::SandboxState& record) {
  return std::make_unique<NamespaceSandbox>(tools_, record);
}

}  // namespace kuasar::sandbox
