#include "sandbox/pod_selinux.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>

#include "base/files.h"
#include "base/log.h"
#include "cri/runtime/v1/api.pb.h"
#include "os/selinux.h"

namespace kuasar::sandbox {
namespace {

namespace cri = ::runtime::v1;

constexpr std::string_view kField = "linux.security_context.selinux_options";

const cri::SELinuxOption& options_of(const cri::PodSandboxConfig& config) {
  return config.linux().security_context().selinux_options();
}

std::string_view trim(std::string_view text) {
  const auto blank = [](char c) { return c == ' ' || c == '\t' || c == '"' || c == '\r'; };
  while (!text.empty() && blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && blank(text.back())) text.remove_suffix(1);
  return text;
}

// The value of `key` in a file of `key = "value"` lines; empty when it has none.
std::string value_of(std::string_view text, std::string_view key) {
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = trim(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
    const std::size_t sign = line.find('=');
    if (line.empty() || line.front() == '#' || sign == std::string_view::npos) continue;
    if (trim(line.substr(0, sign)) == key) return std::string(trim(line.substr(sign + 1)));
  }
  return {};
}

// user, role, type, level; the level may hold colons.
using Parts = std::array<std::string, 4>;

Result<Parts> split_context(std::string_view context) {
  Parts parts;
  for (std::size_t i = 0; i < 3; ++i) {
    const std::size_t colon = context.find(':');
    if (colon == 0 || colon == std::string_view::npos) {
      return fail(Code::kInvalidArgument, "lxc_contexts: \"{}\" is no SELinux context", context);
    }
    parts[i] = context.substr(0, colon);
    context.remove_prefix(colon + 1);
  }
  parts[3] = context;
  return parts;
}

std::string join_context(const Parts& parts) {
  return fmt::format("{}:{}:{}:{}", parts[0], parts[1], parts[2], parts[3]);
}

bool eat(std::string_view& text, char c) {
  if (text.empty() || text.front() != c) return false;
  text.remove_prefix(1);
  return true;
}

bool eat_number(std::string_view& text, std::size_t most) {
  std::size_t digits = 0;
  while (digits < most && digits < text.size() && text[digits] >= '0' && text[digits] <= '9') {
    ++digits;
  }
  text.remove_prefix(digits);
  return digits > 0;
}

// s0, s0-s1, s0:c1,c2.c5: what containerd takes for a level (its checkSelinuxLevel).
bool is_level(std::string_view text) {
  if (!eat(text, 's') || !eat_number(text, 1)) return false;
  if (eat(text, '-') && (!eat(text, 's') || !eat_number(text, 1))) return false;
  if (text.empty()) return true;
  if (!eat(text, ':')) return false;
  do {
    if (!eat(text, 'c') || !eat_number(text, 4)) return false;
    if (eat(text, '.') && (!eat(text, 'c') || !eat_number(text, 4))) return false;
  } while (eat(text, ','));
  return text.empty();
}

// FNV-1a: the same in every build, for a pod keeps its label over restarts of the daemon.
std::uint64_t digest(std::string_view text) {
  std::uint64_t hash = 14695981039346656037ULL;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211ULL;
  return hash;
}

// Two different ones of the 1024 categories.
std::string categories(std::string_view sandbox_id) {
  constexpr std::uint64_t kCategories = 1024;
  const std::uint64_t hash = digest(sandbox_id);
  const std::uint64_t first = hash % kCategories;
  std::uint64_t second = (hash / kCategories) % (kCategories - 1);
  if (second >= first) ++second;
  return fmt::format("c{},c{}", std::min(first, second), std::max(first, second));
}

Result<std::string> read_contexts() {
  // The containers' own policy package comes before the distribution's, as in libselinux for Go.
  Result<std::string> text = read_file("/usr/share/containers/selinux/contexts", 1U << 20);
  if (text || text.error().err != ENOENT) return text;
  std::string type =
      value_of(read_file("/etc/selinux/config", 1U << 20).value_or(""), "SELINUXTYPE");
  if (type.empty()) type = "targeted";
  return read_file("/etc/selinux/" + type + "/contexts/lxc_contexts", 1U << 20);
}

}  // namespace

Result<SelinuxContexts> parse_lxc_contexts(std::string_view text) {
  SelinuxContexts contexts{value_of(text, "process"), value_of(text, "file")};
  if (contexts.process.empty() || contexts.file.empty()) {
    return fail(Code::kInvalidArgument, "lxc_contexts names no process or no file context");
  }
  return contexts;
}

Result<> check_selinux_options(const cri::PodSandboxConfig& config) {
  const cri::SELinuxOption& options = options_of(config);
  const std::pair<std::string_view, const std::string&> parts[] = {
      {"user", options.user()}, {"role", options.role()}, {"type", options.type()}};
  for (const auto& [name, text] : parts) {
    const bool clean = std::all_of(text.begin(), text.end(), [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
             c == '_' || c == '.' || c == '-';
    });
    if (!clean || text.size() > 255) {
      return fail(Code::kInvalidArgument, "{}.{}: that is no part of an SELinux context", kField,
                  name);
    }
  }
  if (!options.level().empty() && !is_level(options.level())) {
    return fail(Code::kInvalidArgument, "{}.level: that is no level such as s0:c1,c2", kField);
  }
  return {};
}

Result<SelinuxLabels> plan_selinux_labels(const cri::PodSandboxConfig& config,
                                          const SelinuxContexts& contexts,
                                          std::string_view sandbox_id) {
  CHECK_OK(check_selinux_options(config));
  const cri::SELinuxOption& options = options_of(config);
  TRY(Parts process, split_context(contexts.process));
  TRY(Parts file, split_context(contexts.file));
  if (!options.user().empty()) process[0] = options.user();
  if (!options.role().empty()) process[1] = options.role();
  if (!options.type().empty()) process[2] = options.type();
  const std::string sensitivity = process[3].substr(0, process[3].find(':'));
  process[3] = options.level().empty() ? fmt::format("{}:{}", sensitivity, categories(sandbox_id))
                                       : options.level();
  file[3] = process[3];
  return SelinuxLabels{join_context(process), join_context(file)};
}

Result<SelinuxLabels> selinux_labels(const cri::PodSandboxConfig& config,
                                     std::string_view sandbox_id) {
  if (!os::selinux_enabled()) {
    if (options_of(config).ByteSizeLong() > 0) {
      log::info({sandbox_id, {}}, "{} has no effect: there is no SELinux on this host", kField);
    }
    return SelinuxLabels{};
  }
  Result<std::string> text = read_contexts();
  if (!text && text.error().err == ENOENT) {
    // As containerd's own shim.
    log::warning({sandbox_id, {}},
                 "no SELinux labels: the host's policy says nothing of containers ({}); install "
                 "container-selinux or the like",
                 text.error().message);
    return SelinuxLabels{};
  }
  if (!text) return fail(std::move(text).error().context("the SELinux policy's contexts"));
  TRY(const SelinuxContexts contexts, parse_lxc_contexts(*text));
  return plan_selinux_labels(config, contexts, sandbox_id);
}

}  // namespace kuasar::sandbox
