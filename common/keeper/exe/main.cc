// kuasar-keeper: holds what its daemon would lose when that dies or is replaced.

#include <errno.h>
#include <fcntl.h>
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

// As the daemon's lines; under systemd with the priority in front, which is taken off there.
void say(int level, const char* format, ...) {
  char line[1024];
  int size = 0;
  if (getenv("JOURNAL_STREAM") != nullptr) {
    size = snprintf(line, sizeof line, "<%d>", level);
  } else {
    timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    // gmtime_r() would read the time zone. Days of the civil calendar, counted from March 1st.
    const long days = now.tv_sec / 86400 + 719468;
    const long era_day = days % 146097;
    const long year = (era_day - era_day / 1460 + era_day / 36524 - era_day / 146096) / 365;
    const long year_day = era_day - (365 * year + year / 4 - year / 100);
    const long shifted = (5 * year_day + 2) / 153;
    const long month = shifted < 10 ? shifted + 3 : shifted - 9;
    const long second = now.tv_sec % 86400;
    size = snprintf(line, sizeof line, "%04ld-%02ld-%02ldT%02ld:%02ld:%02ld.%03ldZ %s ",
                    year + days / 146097 * 400 + (month <= 2), month,
                    year_day - (153 * shifted + 2) / 5 + 1, second / 3600, second / 60 % 60,
                    second % 60, now.tv_nsec / 1000000,
                    level <= 3   ? "ERROR"
                    : level == 4 ? "WARN "
                                 : "INFO ");
  }
  size += snprintf(line + size, sizeof line - static_cast<std::size_t>(size), "kuasar-keeper: ");
  va_list arguments;
  va_start(arguments, format);
  const std::size_t room = sizeof line - static_cast<std::size_t>(size) - 1;
  const int more = vsnprintf(line + size, room, format, arguments);
  va_end(arguments);
  size += more < static_cast<int>(room) ? more : static_cast<int>(room) - 1;
  line[size++] = '\n';
  [[maybe_unused]] const ssize_t ignored =
      write(STDERR_FILENO, line, static_cast<std::size_t>(size));
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
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (strlen(path_) >= sizeof address.sun_path || *path_ != '/') {
    say(3, "the socket's path is absolute and has at most %zu bytes, which %s has not",
        sizeof address.sun_path - 1, path_);
    return false;
  }
  strcpy(address.sun_path, path_);
  const auto* generic = reinterpret_cast<const sockaddr*>(&address);
  // Two keepers that start at once must not take each other's file for a stale one.
  char parent[sizeof address.sun_path];
  strcpy(parent, path_);
  *strrchr(parent, '/') = '\0';
  const int lock = open(*parent == '\0' ? "/" : parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (lock < 0 || flock(lock, LOCK_EX) != 0) {
    say(3, "cannot open the directory of %s: %s", path_, strerror(errno));
    return false;
  }
  const int probe = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  if (connect(probe, generic, sizeof address) == 0) {
    say(3, "another keeper listens on %s", path_);
    return false;
  }
  if (errno == ECONNREFUSED) unlink(path_);
  close(probe);
  socket_ = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  const mode_t mask = umask(0177);
  const bool bound = bind(socket_, generic, sizeof address) == 0 && ::listen(socket_, 16) == 0;
  if (!bound) say(3, "cannot listen on %s: %s", path_, strerror(errno));
  umask(mask);
  close(lock);
  return bound;
}

namespace {

constexpr char kUsage[] =
    "usage: kuasar-keeper --listen PATH [--daemonize]\n"
    "Holds connections, descriptors and processes of a Kuasar sandboxer across its restarts.\n"
    "  --listen PATH        the socket that the sandboxer connects to (mode 0600)\n"
    "  --daemonize          go to the background once it listens; stderr stays\n"
    "  --check-handover FD  whether this program understands the tables of another keeper\n"
    "  --version, --help\n";

// The parent ends, the grandchild stays, in a session of its own that it does not lead.
bool daemonize() {
  const pid_t child = fork();
  if (child != 0) _exit(child < 0 ? 1 : 0);
  setsid();
  const pid_t grandchild = fork();
  if (grandchild != 0) _exit(grandchild < 0 ? 1 : 0);
  const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  const bool good = null >= 0 && dup2(null, 0) == 0 && dup2(null, 1) == 1 && chdir("/") == 0;
  if (null > 2) close(null);
  return good;
}

// sd_notify(3) by hand.
void notify_ready() {
  const char* path = getenv("NOTIFY_SOCKET");
  sockaddr_un address{};
  if (path == nullptr || strlen(path) >= sizeof address.sun_path) return;
  address.sun_family = AF_UNIX;
  memcpy(address.sun_path, path, strlen(path));
  if (*path == '@') address.sun_path[0] = '\0';
  const int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + strlen(path));
  sendto(fd, "READY=1", 7, MSG_NOSIGNAL, reinterpret_cast<const sockaddr*>(&address), size);
  close(fd);
  unsetenv("NOTIFY_SOCKET");
}

struct Arguments {
  const char* path = nullptr;
  bool daemonize = false;
  bool returned = false;
  int handover = -1;
  int fallback = -1;
  int check = -1;
};

int print(const char* text) {
  return write(STDOUT_FILENO, text, strlen(text)) < 0 ? 1 : 0;
}

// --handover, --fallback and --returned are said by one keeper to another.
bool parse(int argc, char** argv, Arguments& out) {
  for (int i = 1; i < argc; ++i) {
    const auto value = [&](const char* option) {
      return strcmp(argv[i], option) == 0 && i + 1 < argc ? argv[++i] : nullptr;
    };
    if (const char* text = value("--listen"))
      out.path = text;
    else if (const char* fd = value("--handover"))
      out.handover = atoi(fd);
    else if (const char* exe = value("--fallback"))
      out.fallback = atoi(exe);
    else if (const char* copy = value("--check-handover"))
      out.check = atoi(copy);
    else if (strcmp(argv[i], "--returned") == 0)
      out.returned = true;
    else if (strcmp(argv[i], "--daemonize") == 0)
      out.daemonize = true;
    else
      return false;
  }
  return out.path != nullptr || out.check >= 0;
}

int take_over(const Arguments& arguments, Keeper& keeper, char** argv) {
  if (keeper.take_over(arguments.handover, arguments.returned)) return keeper.run();
  say(3, "cannot take over from the keeper that executed it");
  if (arguments.fallback < 0) return 1;
  char file[32];
  snprintf(file, sizeof file, "/proc/self/fd/%d", arguments.fallback);
  char handover[16];
  snprintf(handover, sizeof handover, "%d", arguments.handover);
  const char* back[] = {argv[0],  "--listen",   arguments.path, "--handover",
                        handover, "--returned", nullptr};
  execve(file, const_cast<char* const*>(back), environ);
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && strcmp(argv[1], "--help") == 0) return print(kUsage);
  if (argc == 2 && strcmp(argv[1], "--version") == 0) {
    return print(words("kuasar-keeper %s\n", kuasar::version().data()));
  }
  Arguments arguments;
  if (!parse(argc, argv, arguments)) {
    return write(STDERR_FILENO, kUsage, sizeof kUsage - 1) < 0 ? 1 : 64;
  }
  if (arguments.check >= 0) return check_handover(arguments.check);
  static Keeper keeper(arguments.path);
  if (arguments.handover >= 0) return take_over(arguments, keeper, argv);
  if (!keeper.listen() || (arguments.daemonize && !daemonize())) return 1;
  notify_ready();
  return keeper.run();
}

}  // namespace kuasar::keeper

int main(int argc, char** argv) {
  return kuasar::keeper::main(argc, argv);
}
