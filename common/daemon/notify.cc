#include "daemon/notify.h"

#include <systemd/sd-daemon.h>

#include <string>

#include "base/error.h"
#include "base/log.h"

namespace kuasar::daemon {
namespace {

// One field per line (sd_notify(3)): a line break in a status would start another.
std::string one_line(std::string_view text) {
  std::string line(text);
  for (char& c : line) {
    if (c == '\n' || c == '\r') c = ' ';
  }
  return line;
}

void send(const std::string& message) {
  static bool complained = false;
  const int sent = ::sd_notify(0, message.c_str());
  if (sent < 0 && !complained) {
    complained = true;
    log::warning({}, "{}", Error::from_errno_value(-sent, "notify", "the service manager").message);
  }
}

}  // namespace

void notify_ready(std::string_view status) {
  send("READY=1\nSTATUS=" + one_line(status));
}

void notify_stopping(std::string_view status) {
  send("STOPPING=1\nSTATUS=" + one_line(status));
}

void notify_status(std::string_view status) {
  send("STATUS=" + one_line(status));
}

}  // namespace kuasar::daemon
