#include "runc_config.h"

#include <algorithm>
#include <thread>

namespace kuasar::runc {

RuncConfig::RuncConfig()
    : gate_width(2 * std::max<std::int64_t>(1, std::thread::hardware_concurrency())) {
  const daemon::DaemonDefaults defaults = runc_defaults();
  daemon.listen = defaults.listen;
  daemon.dir = defaults.dir;
}

daemon::DaemonDefaults runc_defaults() {
  return {.name = "runc-sandboxer",
          .kind = "runc",
          .listen = "/run/runc-sandboxer.sock",
          .dir = "/run/kuasar-runc",
          .config = "/etc/kuasar/runc.toml"};
}

daemon::ConfigTable runc_config_table(RuncConfig& config) {
  daemon::ConfigTable table;
  daemon::add_daemon_keys(table, config.daemon);
  table.add_string("runtime", &config.runtime);
  table.add_seconds("runtime_timeout_secs", &config.runtime_timeout, 1, 3600);
  table.add_bool("default_sysctls", &config.default_sysctls);
  table.add_integer("gate_width", &config.gate_width, 1, 1024);
  return table;
}

}  // namespace kuasar::runc
