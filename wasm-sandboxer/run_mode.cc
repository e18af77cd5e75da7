#include "run_mode.h"

namespace kuasar::wasm {

std::string to_string(const RunMode& mode) {
  return mode.modules ? mode.engine + "/" + std::string(RunMode::kModule) : mode.engine;
}

RunMode parse_mode(std::string_view text, const RunMode& standard) {
  if (text.empty()) return standard;
  const std::size_t slash = text.find('/');
  const std::string_view kind = slash == std::string_view::npos ? "" : text.substr(slash + 1);
  if (slash == std::string_view::npos) return {std::string(text), standard.modules};
  if (kind == RunMode::kModule) return {std::string(text.substr(0, slash)), true};
  if (kind == RunMode::kEngine) return {std::string(text.substr(0, slash)), false};
  return {std::string(text), false};
}

}  // namespace kuasar::wasm
