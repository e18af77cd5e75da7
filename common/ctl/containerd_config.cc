#include "ctl/containerd_config.h"

#include <algorithm>
#include <exception>
#include <sstream>
#include <toml.hpp>

namespace kuasar::ctl {
namespace {

// The CRI runtime plugin of configuration versions 3 and 2 (containerd docs/cri/config.md).
constexpr const char* kPlugins[] = {"io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri"};

const toml::value* member(const toml::value* table, const std::string& key) {
  if (table == nullptr || !table->is_table() || !table->contains(key)) return nullptr;
  return &table->at(key);
}

std::string text(const toml::value* table, const std::string& key) {
  const toml::value* value = member(table, key);
  if (value == nullptr || !value->is_string()) return "";
  return toml::get<std::string>(*value);
}

bool flag(const toml::value* table, const std::string& key) {
  const toml::value* value = member(table, key);
  return value != nullptr && value->is_boolean() && value->as_boolean();
}

void read_plugin(const toml::value* plugin, ContainerdConfig& config) {
  config.restrict_oom_score_adj |= flag(plugin, "restrict_oom_score_adj");
  const toml::value* runtimes = member(member(plugin, "containerd"), "runtimes");
  if (runtimes == nullptr || !runtimes->is_table()) return;
  for (const auto& [name, runtime] : runtimes->as_table()) {
    const toml::value* options = member(&runtime, "options");
    config.handlers.push_back(
        {name, text(&runtime, "runtime_type"), text(&runtime, "sandboxer"),
         text(&runtime, "io_type"),
         options != nullptr && options->is_table() && !options->as_table().empty()});
  }
}

}  // namespace

Result<ContainerdConfig> parse_containerd_config(const std::string& source) {
  ContainerdConfig config;
  try {
    std::istringstream stream(source);
    const toml::value root = toml::parse(stream, "containerd's configuration");
    if (const toml::value* proxies = member(&root, "proxy_plugins");
        proxies != nullptr && proxies->is_table()) {
      for (const auto& [name, proxy] : proxies->as_table()) {
        config.proxies.push_back({name, text(&proxy, "type"), text(&proxy, "address")});
      }
    }
    const toml::value* plugins = member(&root, "plugins");
    for (const char* plugin : kPlugins) read_plugin(member(plugins, plugin), config);
  } catch (const std::exception& error) {
    return fail(Code::kInvalidArgument, "{}", error.what());
  }
  const auto by_name = [](const auto& a, const auto& b) { return a.name < b.name; };
  std::sort(config.proxies.begin(), config.proxies.end(), by_name);
  std::sort(config.handlers.begin(), config.handlers.end(), by_name);
  return config;
}

}  // namespace kuasar::ctl
