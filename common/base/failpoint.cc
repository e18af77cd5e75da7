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

void failpoint(std::string_view name, std::string_view more, std::string_view last) {
  static const char* const directory = std::getenv("KUASAR_FAILPOINT_DIR");
  if (directory == nullptr) return;
  const std::string file = fmt::format("{}/{}{}{}", directory, name, more, last);
  const UniqueFd fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return;
  char action[8] = {};
  const ssize_t size = ::read(fd.get(), action, sizeof action - 1);
  // Whoever removes the file is the one it is meant for.
  if (size <= 0 || ::unlink(file.c_str()) != 0) return;
  ::kill(::getpid(), std::string_view(action).starts_with("stop") ? SIGSTOP : SIGKILL);
}

}  // namespace kuasar

#endif
