#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/error.h"

namespace kuasar::daemon {

/// Where metrics are served.
struct MetricsAddress {
  /// Of a Unix socket; empty: the loopback.
  std::string path;
  bool v6 = false;
  std::uint16_t port = 0;
};

/// "off" (nothing), "/path/of/socket", "127.0.0.1:PORT" or "[::1]:PORT". Metrics name the pods'
/// counts of a node and have no password: every other address is refused, in words.
Result<std::optional<MetricsAddress>> parse_metrics_address(const std::string& text);

}  // namespace kuasar::daemon
