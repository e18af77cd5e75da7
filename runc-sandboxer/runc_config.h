#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "daemon/args.h"
#include "daemon/daemon_config.h"

namespace kuasar::runc {

/// Settings of the runc sandboxer; docs/RUNC.md lists the keys.
struct RuncConfig {
  daemon::DaemonConfig daemon;
  /// The OCI runtime: a path, or a name that is looked up in PATH.
  std::string runtime = "runc";
  /// How long one call of the OCI runtime may take.
  std::chrono::seconds runtime_timeout{60};
  /// Whether pods get net.ipv4.ip_unprivileged_port_start=0 and net.ipv4.ping_group_range, as
  /// containerd gives them by default.
  bool default_sysctls = true;
  /// OCI runtime processes at a time; preset with twice the number of CPUs.
  std::int64_t gate_width;

  RuncConfig();
};

/// Names and default paths of this sandboxer.
daemon::DaemonDefaults runc_defaults();

/// The keys of this sandboxer, bound to `config`.
daemon::ConfigTable runc_config_table(RuncConfig& config);

}  // namespace kuasar::runc
