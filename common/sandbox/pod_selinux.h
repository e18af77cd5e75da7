#pragma once

#include <string>
#include <string_view>

#include "base/error.h"

namespace runtime::v1 {
class PodSandboxConfig;
}

namespace kuasar::sandbox {

/// What a policy says of containers: its lxc_contexts(5), whole contexts "user:role:type:level".
struct SelinuxContexts {
  std::string process;
  std::string file;
};
/// Reads the text of that file; kInvalidArgument when it names no process or file context. Pure.
Result<SelinuxContexts> parse_lxc_contexts(std::string_view text);

/// Contexts of one pod; both empty on a host without SELinux.
struct SelinuxLabels {
  std::string process;
  /// For /dev/shm and the pod's files.
  std::string mount;
  bool operator==(const SelinuxLabels&) const = default;
};

/// Refuses a selinux_options that is none: a part with a character that no context has, a level
/// that is not like s0:c1,c2 (kInvalidArgument with the field's name). Pure.
Result<> check_selinux_options(const runtime::v1::PodSandboxConfig& config);

/// The policy's contexts with what the pod asks for in selinux_options put in. A pod that asks for
/// no level gets two categories of its own, derived from its id: its containers share files,
/// other pods' do not (T19). Pure.
Result<SelinuxLabels> plan_selinux_labels(const runtime::v1::PodSandboxConfig& config,
                                          const SelinuxContexts& contexts,
                                          std::string_view sandbox_id);

/// The same with this host's policy. Without SELinux, as with containerd's own shim, what a pod
/// asks for has no effect: empty labels.
Result<SelinuxLabels> selinux_labels(const runtime::v1::PodSandboxConfig& config,
                                     std::string_view sandbox_id);

}  // namespace kuasar::sandbox
