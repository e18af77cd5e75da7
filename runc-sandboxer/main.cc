#include "async/fair_gate.h"
#include "base/helper.h"
#include "base/log.h"
#include "daemon/sandboxer.h"
#include "oci/runtimes.h"
#include "os/spawn.h"
#include "runc_config.h"
#include "sandbox/namespace_sandbox.h"
#include "task/oci_driver.h"

namespace {

using namespace kuasar;

/// The OCI runtimes and the gate before them, shared by the driver's calls. One pod may take half
/// of the gate: whatever it does, others find a place.
struct Tools {
  FairGate gate;
  oci::OciRuntimes runtimes;

  Tools(os::Spawner& spawner, const runc::RuncConfig& config, const std::string& root)
      : gate(static_cast<std::size_t>(config.gate_width),
             static_cast<std::size_t>((config.gate_width + 1) / 2)),
        runtimes(spawner, gate, oci::RuntimeConfig{config.runtime, root, config.runtime_timeout}) {}
};

Result<daemon::Engine> make_engine(daemon::Parts& parts, const runc::RuncConfig& config) {
  TRY(const std::string pid_init, find_helper("kuasar-pid-init"));
  if (const Result<std::string> found = os::find_program(config.runtime); !found) {
    log::warning(
        {},
        "no container can be created unless its runtime handler has a BinaryName: OCI runtime {}; "
        "install it or set `runtime`",
        found.error().message);
  }
  auto tools = std::make_shared<Tools>(parts.spawner, config, parts.paths.runtime_root().native());
  daemon::Engine engine;
  engine.factory = std::make_unique<sandbox::NamespaceSandboxFactory>(
      sandbox::PodTools{parts.pool, parts.spawner, parts.paths, pid_init, config.default_sysctls});
  engine.driver =
      std::make_unique<task::OciDriver>(parts.spawner, parts.pool, parts.holder, tools->runtimes);
  engine.gate = &tools->gate;
  engine.tools = std::move(tools);
  return engine;
}

}  // namespace

int main(int argc, char** argv) {
  runc::RuncConfig config;
  const daemon::ConfigTable table = runc::runc_config_table(config);
  return daemon::sandboxer_main(argc, argv, runc::runc_defaults(), config.daemon, table,
                                [&](daemon::Parts& parts) { return make_engine(parts, config); });
}
