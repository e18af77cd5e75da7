#pragma once

#include <string>
#include <string_view>

namespace kuasar::wasm {

/// What a container is made by: an engine, and the kind of its zygote.
struct RunMode {
  static constexpr std::string_view kEngine = "engine";
  static constexpr std::string_view kModule = "module";

  std::string engine;
  /// A zygote that has the module loaded, where there is one (module_zygotes.h).
  bool modules = false;

  bool operator==(const RunMode&) const = default;
};

/// "ENGINE" or "ENGINE/module".
std::string to_string(const RunMode& mode);
/// "", "ENGINE", "ENGINE/engine" or "ENGINE/module"; what is not said is as in `standard`. Other
/// words are taken for the name of an engine, which is not known then.
RunMode parse_mode(std::string_view text, const RunMode& standard);

}  // namespace kuasar::wasm
