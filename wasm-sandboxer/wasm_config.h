#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "daemon/args.h"
#include "daemon/daemon_config.h"
#include "run_mode.h"
#include "zygote.h"

namespace kuasar::wasm {

/// Settings of the wasm sandboxer; docs/WASM.md lists the keys.
struct WasmConfig {
  daemon::DaemonConfig daemon;
  /// As RuncConfig has it.
  bool default_sysctls = true;
  /// A file name for dlopen(3), or a path.
  std::string wasmedge_library = "libwasmedge.so.0";
  /// See EngineConfig; kNone: the machine's own.
  std::string wasmedge_loader = kNoPath;
  std::string wasmedge_library_path = kNoPath;
  std::string wasmtime_library = "libwasmtime.so";
  /// The engine of handlers that name none.
  std::string engine = "wasmedge";

  /// Of handlers that say nothing of it: "engine", or "module" (module_zygotes.h).
  std::string zygote = "engine";
  /// Of native code; kNoPath: none is kept.
  std::string aot_cache = "/var/cache/kuasar-wasm";
  std::int64_t aot_cache_mib = 1024;

  static constexpr const char* kNoPath = "none";

  WasmConfig();
  /// The engines, the default one first.
  std::vector<EngineConfig> engines() const;
  /// Of handlers that name none.
  RunMode mode() const { return {engine, zygote == RunMode::kModule}; }
};

/// Names and default paths of this sandboxer.
daemon::DaemonDefaults wasm_defaults();

/// The keys of this sandboxer, bound to `config`.
daemon::ConfigTable wasm_config_table(WasmConfig& config);

}  // namespace kuasar::wasm
