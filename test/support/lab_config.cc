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
  level = "debug"

[plugins.'io.containerd.nri.v1.nri']
  disable = true

[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "docker.io/library/kuasar-pause:1"

[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true

[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dir = "{cni_plugins}"
  conf_dir = "{root}/etc/cni"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
)";

// The same as the drop-in that is shipped, but for the socket, and with a table of runtime options
// as operators have it: with runtime_type io.containerd.runc.v2 they travel together with the task
// endpoint, with any other StartContainer would fail (T5).
constexpr char kProxyPlugin[] = R"(
[proxy_plugins.{handler}]
  type = "sandbox"
  address = "{socket}"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.{handler}]
  runtime_type = "io.containerd.runc.v2"
  sandboxer = "{handler}"
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

}  // namespace

std::string containerd_config(const LabPlan& plan) {
  std::string text = fmt::format(kContainerd, fmt::arg("root", plan.root.string()),
                                 fmt::arg("cni_plugins", plan.cni_plugins.string()));
  if (plan.sandboxer.ours()) {
    text += fmt::format(kProxyPlugin, fmt::arg("handler", plan.sandboxer.handler),
                        fmt::arg("socket", plan.sandboxer_socket.string()));
  }
  return text;
}

std::string cni_config(const LabPlan& plan) {
  return fmt::format(kCni, fmt::arg("name", plan.name), fmt::arg("root", plan.root.string()),
                     fmt::arg("subnet", plan.subnet));
}

}  // namespace kuasar::test
