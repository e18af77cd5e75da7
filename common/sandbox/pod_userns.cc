#include "sandbox/pod_userns.h"

#include <fmt/format.h>

#include <limits>
#include <string_view>

#include "cri/runtime/v1/api.pb.h"

namespace kuasar::sandbox {
namespace {

namespace cri = ::runtime::v1;

constexpr std::string_view kField = "linux.security_context.namespace_options.userns_options";

template <typename Mappings>
Result<IdRange> one_range(std::string_view part, const Mappings& mappings) {
  if (mappings.size() != 1) {
    return fail(Code::kInvalidArgument, "{}.{}: mode POD takes exactly one mapping, there are {}",
                kField, part, mappings.size());
  }
  const cri::IDMapping& mapping = mappings.Get(0);
  if (mapping.container_id() != 0) {
    return fail(Code::kInvalidArgument, "{}.{}: the mapping must begin with container_id 0, not {}",
                kField, part, mapping.container_id());
  }
  // (uid_t)-1 is no id.
  constexpr std::uint32_t kMax = std::numeric_limits<std::uint32_t>::max();
  if (mapping.length() == 0 || mapping.length() > kMax - mapping.host_id()) {
    return fail(Code::kInvalidArgument, "{}.{}: {} ids from host_id {} on are no range of ids",
                kField, part, mapping.length(), mapping.host_id());
  }
  return IdRange{mapping.host_id(), mapping.length()};
}

}  // namespace

std::string IdRange::option() const {
  return fmt::format("0:{}:{}", first, count);
}

std::string IdRange::line() const {
  return fmt::format("0 {} {}\n", first, count);
}

Result<std::optional<PodUserNamespace>> user_namespace(const cri::PodSandboxConfig& config) {
  const cri::NamespaceOption& options = config.linux().security_context().namespace_options();
  if (!options.has_userns_options()) return std::nullopt;
  const cri::UserNamespace& asked = options.userns_options();
  if (asked.mode() == cri::NODE) {
    if (asked.uids_size() == 0 && asked.gids_size() == 0) return std::nullopt;
    return fail(Code::kInvalidArgument,
                "{}: mode NODE, the host's user namespace, takes no mappings", kField);
  }
  if (asked.mode() != cri::POD) {
    const std::string& name = cri::NamespaceMode_Name(asked.mode());
    return fail(Code::kInvalidArgument, "{}.mode: {} is not supported; use POD or NODE", kField,
                name.empty() ? std::to_string(asked.mode()) : name);
  }
  PodUserNamespace found;
  TRY(found.uids, one_range("uids", asked.uids()));
  TRY(found.gids, one_range("gids", asked.gids()));
  return found;
}

}  // namespace kuasar::sandbox
