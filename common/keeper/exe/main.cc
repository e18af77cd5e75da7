// kuasar-keeper: holds what its daemon would lose when that dies or is replaced.

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/version.h"
#include "keeper/exe/keeper.h"

namespace kuasar::keeper {

void say(const char* text) {
  char line[1024];
  const time_t now = time(nullptr);
  tm utc{};
  const auto size = strftime(line, sizeof line, "%FT%TZ kuasar-keeper: ", gmtime_r(&now, &utc));
  snprintf(line + size, sizeof line - size, "%s\n", text);
  [[maybe_unused]] const ssize_t ignored = write(STDERR_FILENO, line, strlen(line));
}

const char* words(const char* format, ...) {
  static char text[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  return text;
}

bool Keeper::listen() {
  const auto fail = [&](const char* why) {
    say(words("cannot listen on %s: %s", path_, why));
    return false;
  };
  sockaddr_un address{AF_UNIX, {}};
  if (*path_ != '/' || strlen(path_) >= sizeof address.sun_path) {
    return fail("it must be absolute and at most 107 bytes long");
  }
  strcpy(address.sun_path, path_);
  const auto* generic = reinterpret_cast<const sockaddr*>(&address);
  // Two keepers that start at once must not take each other's file for a stale one.
  char directory[sizeof address.sun_path];
  strcpy(directory, path_);
  strrchr(directory, '/')[1] = '\0';
  const int lock = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (lock < 0 || flock(lock, LOCK_EX) != 0) return fail(strerror(errno));
  state_.socket = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  // EAGAIN: its backlog is full.
  if (connect(state_.socket, generic, sizeof address) == 0 || errno == EAGAIN) {
    return fail("another keeper listens on it");
  }
  if (errno == ECONNREFUSED) unlink(path_);
  umask(0177);
  const bool good =
      bind(state_.socket, generic, sizeof address) == 0 && ::listen(state_.socket, 16) == 0;
  close(lock);
  return good || fail(strerror(errno));
}

namespace {

constexpr char kUsage[] =
    "usage: kuasar-keeper --listen PATH [--daemonize]\n"
    "Holds connections, descriptors and processes of a Kuasar sandboxer across its restarts.\n"
    "  --listen PATH  the socket that the sandboxer connects to (mode 0600)\n"
    "  --daemonize    go to the background once it listens; stderr stays\n"
    "  --version, --help\n";

// sd_notify(3) by hand.
void notify_ready() {
  sockaddr_un address{AF_UNIX, {}};
  const char* path = getenv("NOTIFY_SOCKET");
  if (path == nullptr || strlen(path) >= sizeof address.sun_path) return;
  strcpy(address.sun_path, path);
  if (*path == '@') address.sun_path[0] = '\0';
  const int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + strlen(path));
  sendto(fd, "READY=1", 7, MSG_NOSIGNAL, reinterpret_cast<const sockaddr*>(&address), size);
  close(fd);
}

}  // namespace
}  // namespace kuasar::keeper

int main(int argc, char** argv) {
  using namespace kuasar::keeper;
  const std::string_view command = argc > 1 ? argv[1] : "";
  const std::string_view option = argc > 3 ? argv[3] : "";
  if (command == "--version") {
    return dprintf(STDOUT_FILENO, "kuasar-keeper %s\n", kuasar::version().data()) < 0;
  }
  const bool help = command == "--help";
  // One keeper says these to another: Keeper::execute().
  const bool checks = option == "--check-handover";
  const bool returned = option == "--returned";
  const bool takes_over = returned || option == "--handover";
  const bool in_background = option == "--daemonize";
  const bool good = argc == 3 || (argc == 4 && (checks || takes_over || in_background));
  if (help || command != "--listen" || !good) {
    dprintf(help ? STDOUT_FILENO : STDERR_FILENO, "%s", kUsage);
    return help ? 0 : 64;
  }
  // A reader of our log may go away.
  signal(SIGPIPE, SIG_IGN);
  Keeper keeper(argv[2]);
  if (checks) return keeper.check_handover();
  if (takes_over) return keeper.take_over(returned);
  if (!keeper.listen() || (in_background && daemon(0, 1) != 0)) return 1;
  notify_ready();
  return keeper.run();
}
