#include "daemon/listener.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <optional>
#include <thread>

#include "base/files.h"
#include "base/log.h"

namespace kuasar::daemon {
namespace {

// unix(7): sun_path holds 108 bytes with the final NUL.
constexpr std::size_t kMaxSocketPath = sizeof(sockaddr_un::sun_path) - 1;
constexpr int kBacklog = 1024;

sockaddr_un address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

Result<UniqueFd> new_socket() {
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return fail_errno("create", "a Unix socket");
  return fd;
}

// "pid 12 (containerd)"; the kernel noted the pid when the peer called listen(2).
std::string peer_in_words(int fd) {
  ucred peer{};
  socklen_t size = sizeof peer;
  if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0 || peer.pid <= 0) {
    return "a live process";
  }
  std::string name = "its name is not readable";
  if (Result<std::string> comm = read_file(fmt::format("/proc/{}/comm", peer.pid), 4096)) {
    name = comm->substr(0, comm->find('\n'));
  }
  return fmt::format("pid {} ({})", peer.pid, name);
}

// Who listens on an existing socket file; nothing when nobody does.
Result<std::optional<std::string>> owner_of(const std::string& path) {
  TRY(const UniqueFd probe, new_socket());
  const sockaddr_un address = address_of(path);
  if (::connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) {
    return peer_in_words(probe.get());
  }
  if (errno == ECONNREFUSED || errno == ENOENT) return std::nullopt;
  // EAGAIN: the queue of a listener is full. EPROTOTYPE: a socket of another type lives there.
  if (errno == EAGAIN || errno == EPROTOTYPE) return "a live process";
  return fail_errno("connect to", path);
}

bool same_file(const struct stat& a, const struct stat& b) {
  return a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

// Removes a socket file that nobody listens on. It is first renamed: if another daemon has bound
// the path since we looked, that shows now, and its socket goes back.
Result<> remove_stale(const std::string& path, const struct stat& probed) {
  const std::filesystem::path old(path);
  const std::string aside =
      (old.parent_path() / fmt::format("{}stale-{}", kTempPrefix, ::getpid())).native();
  if (::rename(path.c_str(), aside.c_str()) != 0) {
    if (errno == ENOENT) return {};
    return fail_errno("move away", path);
  }
  struct stat moved {};
  if (::lstat(aside.c_str(), &moved) != 0) return fail_errno("stat", aside);
  if (!same_file(moved, probed)) {
    ::rename(aside.c_str(), path.c_str());
    return fail(Code::kFailedPrecondition, "another process has just taken the socket {}", path);
  }
  if (::unlink(aside.c_str()) != 0) return fail_errno("remove", aside);
  return {};
}

Result<> make_room(const std::string& path) {
  struct stat st {};
  if (::lstat(path.c_str(), &st) != 0) {
    if (errno == ENOENT) return {};
    return fail_errno("stat", path);
  }
  if (!S_ISSOCK(st.st_mode)) {
    return fail(Code::kFailedPrecondition,
                "{} exists and is no socket; remove it or choose another path with --listen", path);
  }
  TRY(std::optional<std::string> owner, owner_of(path));
  if (!owner) {
    // Between bind(2) and listen(2) of a starting daemon its socket looks dead: look again.
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    TRY(owner, owner_of(path));
  }
  if (owner) {
    return fail(Code::kFailedPrecondition,
                "the socket {} belongs to {}; stop that first or choose another path with --listen",
                path, *owner);
  }
  log::info({}, "taking over the socket {}, which nobody listens on", path);
  return remove_stale(path, st);
}

Result<> check_path(const std::string& path) {
  if (!path.starts_with('/')) {
    return fail(Code::kInvalidArgument, "the socket path \"{}\" is not absolute", path);
  }
  if (path.find('\0') != std::string::npos) {
    return fail(Code::kInvalidArgument, "the socket path has a NUL byte in it");
  }
  if (path.size() > kMaxSocketPath) {
    return fail(Code::kInvalidArgument,
                "the socket path {} has {} bytes, the kernel takes {}: choose a shorter one", path,
                path.size(), kMaxSocketPath);
  }
  const std::string parent = std::filesystem::path(path).parent_path().native();
  struct stat st {};
  if (::stat(parent.c_str(), &st) != 0) {
    if (errno == ENOENT) {
      return fail(Code::kNotFound, "the directory {} of the socket {} does not exist: create it",
                  parent, path);
    }
    return fail_errno("stat", parent);
  }
  if (!S_ISDIR(st.st_mode)) {
    return fail(Code::kFailedPrecondition, "{} is no directory, so that {} cannot be made", parent,
                path);
  }
  return {};
}

}  // namespace

Result<Listener> Listener::bind(const std::string& path) {
  CHECK_OK(check_path(path));
  CHECK_OK(make_room(path));
  TRY(UniqueFd fd, new_socket());
  // The file gets the socket's mode less the umask (unix(7)): it is never wider than this, not
  // for a moment.
  if (::fchmod(fd.get(), 0600) != 0) return fail_errno("chmod", "a Unix socket");
  const sockaddr_un address = address_of(path);
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return fail_errno("bind", path);
  }
  struct stat st {};
  if (::lstat(path.c_str(), &st) != 0) return fail_errno("stat", path);
  Listener listener(path, std::move(fd), st.st_dev, st.st_ino);
  if (::chmod(path.c_str(), 0600) != 0) return fail_errno("chmod", path);
  if (::listen(listener.fd(), kBacklog) != 0) return fail_errno("listen on", path);
  return listener;
}

std::optional<Listener> Listener::resume(const std::string& path, UniqueFd fd) {
  sockaddr_un address{};
  socklen_t size = sizeof address;
  if (::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &size) != 0) return {};
  const std::size_t used = size - offsetof(sockaddr_un, sun_path);
  if (std::string_view(address.sun_path, ::strnlen(address.sun_path, used)) != path) return {};
  struct stat st {};
  if (::lstat(path.c_str(), &st) != 0 || !S_ISSOCK(st.st_mode)) return {};
  return Listener(path, std::move(fd), st.st_dev, st.st_ino);
}

void Listener::remove_file() {
  if (path_.empty()) return;
  struct stat st {};
  if (::lstat(path_.c_str(), &st) == 0 && st.st_dev == device_ && st.st_ino == inode_) {
    ::unlink(path_.c_str());
  }
  path_.clear();
}

Result<UniqueFd> lock_state_dir(const std::string& file) {
  UniqueFd fd(::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd) return fail_errno("open", file);
  if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return fail_errno("lock", file);
    std::string holder = "another daemon";
    char buffer[32] = {};
    const ssize_t n = ::pread(fd.get(), buffer, sizeof buffer - 1, 0);
    if (n > 0) {
      const std::string text(buffer, static_cast<std::size_t>(n));
      const std::string pid = text.substr(0, text.find_first_not_of("0123456789"));
      if (!pid.empty()) holder = "the daemon with pid " + pid;
    }
    return fail(Code::kFailedPrecondition,
                "{} works on this state directory ({} is locked); stop it first or choose another "
                "directory with --dir",
                holder, file);
  }
  struct stat locked {};
  struct stat named {};
  if (::fstat(fd.get(), &locked) != 0 || ::stat(file.c_str(), &named) != 0 ||
      !same_file(locked, named)) {
    return fail(Code::kUnavailable, "{} went away with a daemon that has just ended; start again",
                file);
  }
  // Only for the message above; the lock itself ends with the process.
  const std::string pid = std::to_string(::getpid()) + "\n";
  if (::ftruncate(fd.get(), 0) != 0 ||
      ::pwrite(fd.get(), pid.data(), pid.size(), 0) != static_cast<ssize_t>(pid.size())) {
    return fail_errno("write", file);
  }
  return fd;
}

}  // namespace kuasar::daemon
