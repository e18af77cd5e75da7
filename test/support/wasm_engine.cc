#include "support/wasm_engine.h"

#include <fmt/format.h>

#include <cstdlib>

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;

fs::path from_environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? fs::path() : fs::path(value);
}

}  // namespace

fs::path find_below(const fs::path& dir, const std::string& start) {
  std::error_code ec;
  for (const auto& entry : fs::recursive_directory_iterator(dir, ec)) {
    if (entry.path().filename().native().starts_with(start)) return entry.path();
  }
  return {};
}

std::vector<fs::path> cached_code(const fs::path& dir) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(dir)) {
    if (!entry.path().filename().native().starts_with(".")) files.push_back(entry.path());
  }
  return files;
}

std::optional<wasm::EngineConfig> find_wasmedge(std::string& reason) {
  std::error_code ec;
  const fs::path prefix = fs::canonical(from_environment("KUASAR_LAB_WASMEDGE"), ec);
  if (!ec) {
    const fs::path loader = find_below(prefix / "usr", "ld-linux");
    const fs::path library = find_below(prefix / "usr", "libwasmedge.so.0");
    if (!loader.empty() && !library.empty()) {
      return wasm::EngineConfig{"wasmedge", library, loader, library.parent_path()};
    }
  }
  const fs::path system = find_below("/usr/lib", "libwasmedge.so.0");
  if (!system.empty()) return wasm::EngineConfig{"wasmedge", system, "", ""};
  reason = "no WasmEdge: KUASAR_LAB_WASMEDGE names none and this machine has none";
  return std::nullopt;
}

std::optional<wasm::EngineConfig> find_wasmtime(std::string& reason) {
  std::error_code ec;
  const fs::path library = fs::canonical(from_environment("KUASAR_LAB_WASMTIME"), ec);
  if (!ec) return wasm::EngineConfig{"wasmtime", library, "", ""};
  reason = "no Wasmtime: `tools/dev setup` could not download its wheel with pip";
  return std::nullopt;
}

std::string engine_toml(const wasm::EngineConfig& config, const std::string& aot_cache) {
  std::string text = fmt::format("engine = \"{0}\"\n{0}_library = \"{1}\"\naot_cache = \"{2}\"\n",
                                 config.name, config.library, aot_cache);
  if (!config.loader.empty()) {
    text += fmt::format("wasmedge_loader = \"{}\"\nwasmedge_library_path = \"{}\"\n", config.loader,
                        config.library_path);
  }
  return text;
}

fs::path wasm_modules() {
  std::error_code ec;
  const fs::path dir = fs::canonical(from_environment("KUASAR_LAB_MODULES"), ec);
  return ec ? fs::path() : dir;
}

}  // namespace kuasar::test
