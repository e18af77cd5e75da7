#include <fmt/format.h>

#include "support/lab_parts.h"

namespace kuasar::test {
namespace {

// Left out: what looks for devices that are not here, listens on the network, or writes outside of
// the lab. restrict_oom_score_adj lets it run without CAP_SYS_RESOURCE. The pods' network
// namespaces lie below the state directory, so that labs do not see each other's.
constexpr char kContainerd[] = R"(version = 3
root = "{root}/root"
state = "{root}/state"
disabled_plugins = [
  "io.containerd.internal.v1.opt",
  "io.containerd.internal.v1.tracing",
  "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs",
  "io.containerd.snapshotter.v1.zfs",
]

[grpc]
  address = "{root}/run/containerd.sock"

[debug]
  level = "{log_level}"

[plugins.'io.containerd.nri.v1.nri']
  disable = false
  socket_path = "{root}/run/nri.sock"
  plugin_path = "{root}/nri"
  plugin_config_path = "{root}/nri"

[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "docker.io/library/kuasar-pause:1"

[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  drain_exec_sync_io_timeout = "11s"
  netns_mounts_under_state_dir = true

[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dir = "{cni_plugins}"
  conf_dir = "{root}/etc/cni"
)";

constexpr char kPeer[] = R"(
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
)";

// Both together are the drop-in that is shipped, but for the socket, and with runtime options as
// operators have them: with runtime_type io.containerd.runc.v2 they travel together with the task
// endpoint, with any other StartContainer would fail (T5).
constexpr char kProxyPlugin[] = R"(
[proxy_plugins.{sandboxer}]
  type = "sandbox"
  address = "{socket}"
)";

constexpr char kHandler[] = R"(
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.{handler}]
  runtime_type = "io.containerd.runc.v2"
  sandboxer = "{sandboxer}"
  pod_annotations = ["io.kuasar.*"]
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.{handler}.options]
    NoNewKeyring = true
)";

constexpr char kCni[] = R"({{
  "cniVersion": "1.0.0",
  "name": "{name}",
  "plugins": [
    {{
      "type": "bridge",
      "bridge": "{name}",
      "isGateway": true,
      "hairpinMode": true,
      "ipam": {{
        "type": "host-local",
        "dataDir": "{root}/cni-data",
        "ranges": [[{{"subnet": "{subnet}.0/24"}}]],
        "routes": [{{"dst": "0.0.0.0/0"}}]
      }}
    }}
  ]
}}
)";

// The option that names an OCI runtime; none: the choice of whoever runs it.
std::string runtime_option(const std::string& runtime) {
  return runtime.empty() ? "" : fmt::format("    BinaryName = \"{}\"\n", runtime);
}

std::string handler_config(const std::string& handler, const std::string& sandboxer,
                           const std::string& runtime) {
  return fmt::format(kHandler, fmt::arg("handler", handler), fmt::arg("sandboxer", sandboxer)) +
         runtime_option(runtime);
}

}  // namespace

std::string containerd_config(const LabPlan& plan) {
  std::string text = fmt::format(kContainerd, fmt::arg("root", plan.root.string()),
                                 fmt::arg("cni_plugins", plan.cni_plugins.string()),
                                 fmt::arg("log_level", plan.log_level));
  text += kPeer + runtime_option(plan.runtime);
  if (plan.sandboxer.ours()) {
    const std::string& sandboxer = plan.sandboxer.handler;
    text += fmt::format(kProxyPlugin, fmt::arg("sandboxer", sandboxer),
                        fmt::arg("socket", plan.sandboxer_socket.string()));
    text += handler_config(sandboxer, sandboxer, plan.runtime);
    text += handler_config(plan.named_handler, sandboxer, plan.named_runtime);
  }
  if (plan.neighbour) {
    const std::string& sandboxer = plan.neighbour->handler;
    text += fmt::format(kProxyPlugin, fmt::arg("sandboxer", sandboxer),
                        fmt::arg("socket", plan.neighbour_socket.string()));
    text += handler_config(sandboxer, sandboxer, "");
  }
  return text;
}

std::string cni_config(const LabPlan& plan) {
  return fmt::format(kCni, fmt::arg("name", plan.name), fmt::arg("root", plan.root.string()),
                     fmt::arg("subnet", plan.subnet));
}

}  // namespace kuasar::test
