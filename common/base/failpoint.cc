#include "base/failpoint.h"

#ifdef KUASAR_FAILPOINTS

#include <fcntl.h>
#include <fmt/core.h>
#include <signal.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

#include "base/unique_fd.h"

namespace kuasar {

namespace {

enum class Action { kNone, kKill, kStop, kFail, kAbort };

Action parse(std::string_view text) {
  if (text.starts_with("kill")) return Action::kKill;
  if (text.starts_with("stop")) return Action::kStop;
  if (text.starts_with("fail")) return Action::kFail;
  if (text.starts_with("abort")) return Action::kAbort;
  return Action::kNone;
}

// Carries out a death or a stop; true for an error.
bool pass(const std::string& name, bool can_fail) {
  static const char* const directory = std::getenv("KUASAR_FAILPOINT_DIR");
  if (directory == nullptr) return false;
  const std::string file = fmt::format("{}/{}", directory, name);
  const UniqueFd fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return false;
  char text[8] = {};
  if (::read(fd.get(), text, sizeof text - 1) <= 0) return false;
  const Action action = parse(text);
  if (action == Action::kNone || (action == Action::kFail && !can_fail)) return false;
  // Whoever removes the file is the one it is meant for.
  if (::unlink(file.c_str()) != 0) return false;
  if (action == Action::kFail) return true;
  if (action == Action::kAbort) std::abort();
  ::kill(::getpid(), action == Action::kStop ? SIGSTOP : SIGKILL);
  return false;
}

}  // namespace

void failpoint(std::string_view name, std::string_view more, std::string_view last) {
  (void)pass(fmt::format("{}{}{}", name, more, last), false);
}

Result<> failpoint_result(std::string_view name) {
  if (!pass(std::string(name), true)) return {};
  return fail(Code::kInternal, "failpoint {}", name);
}

}  // namespace kuasar

#endif
