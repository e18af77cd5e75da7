#include "container_plan.h"

#include <sys/resource.h>

#include <algorithm>
#include <set>
#include <string_view>
#include <utility>

#include "oci/process.h"
#include "oci/resources.h"

namespace kuasar::wasm {
namespace {

constexpr std::uint64_t kPage = 65536;
constexpr std::uint64_t kMaxPages = 65536;

// Types whose content is of no use to a module. /proc would even be dangerous: by /proc/self/mem a
// guest could write into its own engine.
bool is_left_out(const std::string& type) {
  static const std::set<std::string_view> types = {"proc",    "sysfs",  "cgroup",
                                                   "cgroup2", "mqueue", "devpts"};
  return types.contains(type);
}

Result<int> resource_of(const std::string& name) {
  constexpr std::pair<std::string_view, int> kResources[] = {
      {"RLIMIT_AS", RLIMIT_AS},           {"RLIMIT_CORE", RLIMIT_CORE},
      {"RLIMIT_CPU", RLIMIT_CPU},         {"RLIMIT_DATA", RLIMIT_DATA},
      {"RLIMIT_FSIZE", RLIMIT_FSIZE},     {"RLIMIT_LOCKS", RLIMIT_LOCKS},
      {"RLIMIT_MEMLOCK", RLIMIT_MEMLOCK}, {"RLIMIT_MSGQUEUE", RLIMIT_MSGQUEUE},
      {"RLIMIT_NICE", RLIMIT_NICE},       {"RLIMIT_NOFILE", RLIMIT_NOFILE},
      {"RLIMIT_NPROC", RLIMIT_NPROC},     {"RLIMIT_RSS", RLIMIT_RSS},
      {"RLIMIT_RTPRIO", RLIMIT_RTPRIO},   {"RLIMIT_RTTIME", RLIMIT_RTTIME},
      {"RLIMIT_STACK", RLIMIT_STACK},     {"RLIMIT_SIGPENDING", RLIMIT_SIGPENDING}};
  for (const auto& [known, number] : kResources) {
    if (known == name) return number;
  }
  return fail(Code::kInvalidArgument, "process.rlimits.type: \"{}\" is not known", name);
}

Result<> refuse_filled(const oci::Spec& spec, std::string_view path, std::string_view why) {
  TRY(const std::string json, spec.json_at(path));
  if (json.empty() || json == "[]" || json == "{}") return {};
  return fail(Code::kUnimplemented, "{}: {}", path, why);
}

Result<> refuse_unsupported(const oci::Spec& spec) {
  constexpr std::string_view kNoHooks = "no hooks are run for a WebAssembly module";
  for (const char* kind : {"hooks.prestart", "hooks.createRuntime", "hooks.createContainer",
                           "hooks.startContainer", "hooks.poststart", "hooks.poststop"}) {
    CHECK_OK(refuse_filled(spec, kind, kNoHooks));
  }
  return refuse_filled(spec, "linux.devices",
                       "a WebAssembly module has no devices (is the container privileged?)");
}

Result<MountStep> plan_step(const oci::Mount& mount) {
  MountStep step;
  step.target = oci::normalise_destination(mount.destination);
  step.devices = step.target == "/dev" && mount.type == "tmpfs";
  os::MountSpec spec{mount.type, mount.source, mount.options};
  // runc's words for what mount(8) has none for.
  for (std::string& option : spec.options) {
    step.recursive_readonly = step.recursive_readonly || option == "rro";
    step.idmapped = step.idmapped || option == "idmap";
    if (option == "rro") option = "ro";
  }
  std::erase(spec.options, "idmap");
  std::erase_if(spec.options, [](const std::string& option) { return option == "rrw"; });
  TRY(step.plan, os::plan_mount(spec));
  return step;
}

Result<> plan_mounts(const oci::Spec& spec, ContainerBlueprint& blueprint) {
  TRY(const std::vector<oci::Mount> mounts, spec.mounts());
  TRY(const std::vector<oci::IdMapping> uids, spec.uid_mappings());
  TRY(const std::vector<oci::IdMapping> gids, spec.gid_mappings());
  for (const oci::Mount& mount : mounts) {
    if (is_left_out(mount.type)) continue;
    // The host's /sys that a pod with a user namespace is given in the place of its own.
    const std::string target = oci::normalise_destination(mount.destination);
    if (target == "/sys" || target == "/proc") continue;
    Result<MountStep> step = plan_step(mount);
    if (!step) return fail(std::move(step).error().context("mount {}", mount.destination));
    if (!mount.uid_mappings.empty() || !mount.gid_mappings.empty()) {
      if (mount.uid_mappings != uids || mount.gid_mappings != gids) {
        return fail(Code::kUnimplemented,
                    "mount {}: uidMappings and gidMappings other than the pod's are not supported",
                    mount.destination);
      }
      step->idmapped = true;
    }
    blueprint.mounts.push_back(std::move(*step));
  }
  return {};
}

Result<> plan_namespaces(const oci::Spec& spec, ContainerBlueprint& blueprint) {
  TRY(const std::vector<oci::NamespaceEntry> entries, spec.namespaces());
  blueprint.host_pid = true;
  for (const oci::NamespaceEntry& entry : entries) {
    if (entry.type == "pid") {
      blueprint.host_pid = false;
      blueprint.pid_namespace = entry.path;
    } else if (entry.type == "user") {
      blueprint.user_namespace = entry.path;
    } else if (entry.type != "mount" && entry.type != "cgroup") {
      blueprint.namespaces.push_back(entry.path);
    }
  }
  return {};
}

}  // namespace

Result<Plan> plan_process(const std::string& json) {
  TRY(const oci::ProcessView process, oci::parse_process(json));
  Plan plan;
  std::tie(plan.module, plan.function) = split_module(process.args.front());
  if (plan.module.empty()) {
    return fail(Code::kInvalidArgument, "process.args[0]: \"{}\" names no module",
                process.args.front());
  }
  plan.args = process.args;
  plan.args.front() = plan.module;
  plan.env = process.env;
  plan.cwd = process.cwd.empty() ? "/" : process.cwd;
  // WASI has no working directory: a program that wants one asks for this.
  const auto is_pwd = [](const std::string& variable) { return variable.starts_with("PWD="); };
  if (std::none_of(plan.env.begin(), plan.env.end(), is_pwd)) {
    plan.env.push_back("PWD=" + plan.cwd);
  }
  plan.preopens = {{"/", "/", false}};
  plan.uid = process.user.uid;
  plan.gid = process.user.gid;
  plan.groups = process.groups;
  plan.umask = process.umask.value_or(022);
  for (const oci::ProcessView::Limit& limit : process.limits) {
    TRY(const int resource, resource_of(limit.type));
    plan.limits.push_back({resource, limit.soft, limit.hard});
  }
  return plan;
}

Result<ContainerBlueprint> plan_container(const oci::Spec& spec) {
  ContainerBlueprint blueprint;
  CHECK_OK(refuse_unsupported(spec));
  TRY(const std::string process, spec.json_at("process"));
  if (process.empty()) return fail(Code::kInvalidArgument, "process: missing");
  TRY(blueprint.plan, plan_process(process));
  TRY(blueprint.plan.root_readonly, spec.root_readonly());
  CHECK_OK(plan_mounts(spec, blueprint));
  CHECK_OK(plan_namespaces(spec, blueprint));
  TRY(blueprint.cgroups_path, spec.cgroups_path());
  TRY(const std::string resources, spec.json_at("linux.resources"));
  if (!resources.empty()) {
    TRY(blueprint.limits, oci::parse_resources(resources));
  }
  const std::int64_t memory = blueprint.limits.memory.value_or(-1);
  if (memory > 0) {
    blueprint.plan.memory_pages = static_cast<std::uint32_t>(
        std::clamp<std::uint64_t>(static_cast<std::uint64_t>(memory) / kPage, 1, kMaxPages));
  }
  TRY(blueprint.oom_score_adj, spec.oom_score_adj());
  return blueprint;
}

}  // namespace kuasar::wasm
