#include "wasm_config.h"

#include <algorithm>

namespace kuasar::wasm {

WasmConfig::WasmConfig() {
  const daemon::DaemonDefaults defaults = wasm_defaults();
  daemon.listen = defaults.listen;
  daemon.dir = defaults.dir;
}

std::vector<EngineConfig> WasmConfig::engines() const {
  const auto path = [](const std::string& value) { return value == kNoPath ? "" : value; };
  std::vector<EngineConfig> engines = {
      {"wasmedge", wasmedge_library, path(wasmedge_loader), path(wasmedge_library_path)},
      {"wasmtime", wasmtime_library, "", ""}};
  for (EngineConfig& config : engines) config.aot = aot_cache != kNoPath;
  std::stable_partition(engines.begin(), engines.end(),
                        [&](const EngineConfig& config) { return config.name == engine; });
  return engines;
}

daemon::DaemonDefaults wasm_defaults() {
  return {.name = "wasm-sandboxer",
          .kind = "wasm",
          .listen = "/run/wasm-sandboxer.sock",
          .dir = "/run/kuasar-wasm",
          .config = "/etc/kuasar/wasm.toml"};
}

daemon::ConfigTable wasm_config_table(WasmConfig& config) {
  daemon::ConfigTable table;
  daemon::add_daemon_keys(table, config.daemon);
  table.add_bool("default_sysctls", &config.default_sysctls);
  table.add_word("engine", {"wasmedge", "wasmtime"}, &config.engine);
  table.add_word("zygote", {"engine", "module"}, &config.zygote);
  table.add_string("wasmedge_library", &config.wasmedge_library);
  table.add_path_or("wasmedge_loader", WasmConfig::kNoPath, &config.wasmedge_loader);
  table.add_path_or("wasmedge_library_path", WasmConfig::kNoPath, &config.wasmedge_library_path);
  table.add_string("wasmtime_library", &config.wasmtime_library);
  table.add_path_or("aot_cache", WasmConfig::kNoPath, &config.aot_cache);
  table.add_integer("aot_cache_mib", &config.aot_cache_mib, 1, 1 << 20);
  return table;
}

}  // namespace kuasar::wasm
