#include "oci/runtimes.h"

#include <limits.h>

#include <algorithm>
#include <utility>

namespace kuasar::oci {

Result<> validate_runtime_name(std::string_view name) {
  const auto refuse = [&](std::string_view why) {
    return fail(Code::kInvalidArgument, "\"{}\" names no OCI runtime: {}", name.substr(0, 200),
                why);
  };
  if (name.empty()) return refuse("it is empty");
  if (name.size() >= PATH_MAX) return refuse("it is too long");
  const auto is_control = [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7F; };
  if (std::any_of(name.begin(), name.end(), is_control)) {
    return fail(Code::kInvalidArgument, "the name of an OCI runtime has a control character");
  }
  if (name.front() != '/' && name.find('/') != name.npos) {
    return refuse("give an absolute path, or a plain name to look up in PATH");
  }
  const std::string_view last = name.substr(name.rfind('/') + 1);
  if (last.empty() || last == "." || last == "..") return refuse("it is a directory");
  return {};
}

OciRuntimes::OciRuntimes(os::Spawner& spawner, FairGate& gate, RuntimeConfig config)
    : spawner_(spawner), gate_(gate), config_(std::move(config)) {}

Result<OciRuntime*> OciRuntimes::find(const std::string& name) {
  const std::string& wanted = name.empty() ? config_.binary : name;
  if (const auto known = by_name_.find(wanted); known != by_name_.end()) return &known->second;
  CHECK_OK(validate_runtime_name(wanted));
  RuntimeConfig config = config_;
  config.binary = wanted;
  const auto made = by_name_.try_emplace(wanted, spawner_, gate_, std::move(config));
  return &made.first->second;
}

}  // namespace kuasar::oci
