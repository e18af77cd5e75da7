#pragma once

#include <string_view>

namespace kuasar::daemon {

/// Messages to the service manager (sd_notify(3)); without NOTIFY_SOCKET they do nothing. A
/// message that cannot be delivered is logged once and is no failure of ours.
void notify_ready(std::string_view status);
void notify_stopping(std::string_view status);
void notify_status(std::string_view status);

}  // namespace kuasar::daemon
