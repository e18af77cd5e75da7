#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "zygote.h"

namespace kuasar::test {

/// WasmEdge as KUASAR_LAB_WASMEDGE names it (tools/dev sets it), or a libwasmedge.so.0 that the
/// machine has; absent, with the reason, when there is neither.
std::optional<wasm::EngineConfig> find_wasmedge(std::string& reason);
/// Wasmtime as KUASAR_LAB_WASMTIME names it; absent, with the reason, when there is none.
std::optional<wasm::EngineConfig> find_wasmtime(std::string& reason);
/// The keys of wasm-sandboxer's configuration for an engine, which is the default one then.
std::string engine_toml(const wasm::EngineConfig& config, const std::string& aot_cache = "none");
/// The first file below `dir` whose name begins so; empty: none.
std::filesystem::path find_below(const std::filesystem::path& dir, const std::string& start);
/// The files of a cache of native code, but for those that are being written: write_file_atomic()
/// gives them a name with a dot.
std::vector<std::filesystem::path> cached_code(const std::filesystem::path& dir);
/// The directory of the test modules; empty when KUASAR_LAB_MODULES names none.
std::filesystem::path wasm_modules();

}  // namespace kuasar::test
