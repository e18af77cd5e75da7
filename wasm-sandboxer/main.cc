#include "base/helper.h"
#include "base/log.h"
#include "daemon/sandboxer.h"
#include "sandbox/namespace_sandbox.h"
#include "wasm_config.h"
#include "wasm_driver.h"

namespace {

using namespace kuasar;

Result<daemon::Engine> make_engine(daemon::Parts& parts, const wasm::WasmConfig& config) {
  TRY(const std::string pid_init, find_helper("kuasar-pid-init"));
  TRY(const std::string worker, find_helper("kuasar-wasm-worker"));
  daemon::Engine engine;
  engine.factory = std::make_unique<sandbox::NamespaceSandboxFactory>(
      sandbox::PodTools{parts.pool, parts.spawner, parts.paths, pid_init, config.default_sysctls});
  wasm::WasmDriver::Limits limits;
  limits.cache.total = static_cast<std::uint64_t>(config.aot_cache_mib) << 20;
  auto driver = std::make_unique<wasm::WasmDriver>(parts.spawner, parts.pool, parts.holder,
                                                   config.engines(), worker, config.mode(), limits);
  if (config.aot_cache != wasm::WasmConfig::kNoPath) {
    // Containers run without it.
    if (Result<> opened = driver->open_cache(config.aot_cache); opened) {
      engine.background = {[raw = driver.get()] { return raw->run_cache(); },
                           [raw = driver.get()] { return raw->run_zygotes(); }};
    } else {
      log::warning({}, "no native code is kept: {}", opened.error().message);
    }
  }
  engine.driver = std::move(driver);
  return engine;
}

}  // namespace

int main(int argc, char** argv) {
  wasm::WasmConfig config;
  const daemon::ConfigTable table = wasm::wasm_config_table(config);
  return daemon::sandboxer_main(argc, argv, wasm::wasm_defaults(), config.daemon, table,
                                [&](daemon::Parts& parts) { return make_engine(parts, config); });
}
