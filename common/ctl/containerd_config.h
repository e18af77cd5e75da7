#pragma once

#include <string>
#include <vector>

#include "base/error.h"

namespace kuasar::ctl {

/// What we read of containerd's configuration.
struct ContainerdConfig {
  struct Proxy {
    std::string name;
    std::string type;
    std::string address;
  };
  struct Handler {
    std::string name;
    std::string runtime_type;
    std::string sandboxer;
    std::string io_type;
    bool has_options = false;
  };
  std::vector<Proxy> proxies;
  std::vector<Handler> handlers;
  bool restrict_oom_score_adj = false;
};

/// Reads the text of `containerd config dump`, or of a config.toml (versions 2 and 3, without its
/// imports). What it lacks is empty; kInvalidArgument for what is no TOML.
Result<ContainerdConfig> parse_containerd_config(const std::string& text);

}  // namespace kuasar::ctl
