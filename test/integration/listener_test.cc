#include "daemon/listener.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "base/files.h"

namespace kuasar::daemon {
namespace {

namespace fs = std::filesystem;

class SocketDir {
 public:
  SocketDir() {
    char name[] = "/tmp/kuasar-listener-XXXXXX";
    REQUIRE(::mkdtemp(name) != nullptr);
    dir_ = name;
  }
  SocketDir(const SocketDir&) = delete;
  SocketDir& operator=(const SocketDir&) = delete;
  ~SocketDir() { fs::remove_all(dir_); }
  std::string path(const std::string& name) const { return dir_ / name; }
  std::size_t entries() const {
    return static_cast<std::size_t>(
        std::distance(fs::directory_iterator(dir_), fs::directory_iterator()));
  }

 private:
  fs::path dir_;
};

sockaddr_un address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path.c_str(), sizeof address.sun_path - 1);
  return address;
}

UniqueFd bound(const std::string& path, int type) {
  UniqueFd fd(::socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
  const sockaddr_un address = address_of(path);
  REQUIRE(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
  return fd;
}

UniqueFd connected(const std::string& path) {
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const sockaddr_un address = address_of(path);
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    fd.reset();
  }
  return fd;
}

std::string refused(const std::string& path, Code code) {
  Result<Listener> listener = Listener::bind(path);
  REQUIRE_FALSE(listener);
  CHECK(listener.error().code == code);
  return listener.error().message;
}

Listener listening(const std::string& path) {
  Result<Listener> listener = Listener::bind(path);
  INFO((listener ? std::string() : listener.error().message));
  REQUIRE(listener);
  return std::move(*listener);
}

}  // namespace

TEST_CASE("listener: mode 0600 whatever the umask, close-on-exec, non-blocking, accepting") {
  const SocketDir dir;
  for (const mode_t umask : {0, 022, 0777}) {
    const mode_t old = ::umask(umask);
    const Listener listener = listening(dir.path("s"));
    ::umask(old);
    struct stat st {};
    REQUIRE(::lstat(dir.path("s").c_str(), &st) == 0);
    CHECK((st.st_mode & 07777) == 0600);
    CHECK((::fcntl(listener.fd(), F_GETFD) & FD_CLOEXEC) != 0);
    CHECK((::fcntl(listener.fd(), F_GETFL) & O_NONBLOCK) != 0);
    const UniqueFd client = connected(dir.path("s"));
    REQUIRE(client);
    const UniqueFd accepted(::accept(listener.fd(), nullptr, nullptr));
    CHECK(accepted);
  }
  CHECK(dir.entries() == 0);
}

TEST_CASE("listener: a live owner is refused and named by its pid") {
  const SocketDir dir;
  const Listener first = listening(dir.path("s"));
  const std::string words = refused(dir.path("s"), Code::kFailedPrecondition);
  CHECK(words.find(dir.path("s")) != std::string::npos);
  CHECK(words.find(fmt::format("pid {} (", ::getpid())) != std::string::npos);
  CHECK(words.find("--listen") != std::string::npos);
  CHECK(connected(dir.path("s")));
  CHECK(dir.entries() == 1);
}

TEST_CASE("listener: a live socket of another type is refused") {
  const SocketDir dir;
  const UniqueFd datagram = bound(dir.path("s"), SOCK_DGRAM);
  CHECK(refused(dir.path("s"), Code::kFailedPrecondition).find("a live process") !=
        std::string::npos);
  CHECK(dir.entries() == 1);
}

TEST_CASE("listener: a socket file that nobody listens on is taken over") {
  const SocketDir dir;
  bound(dir.path("s"), SOCK_STREAM).reset();
  REQUIRE(fs::exists(dir.path("s")));
  {
    const Listener listener = listening(dir.path("s"));
    CHECK(connected(dir.path("s")));
    CHECK(dir.entries() == 1);
  }
  CHECK(dir.entries() == 0);
}

TEST_CASE("listener: what is no socket is never removed") {
  const SocketDir dir;
  REQUIRE(write_file(dir.path("file"), "precious"));
  CHECK(refused(dir.path("file"), Code::kFailedPrecondition).find("is no socket") !=
        std::string::npos);
  CHECK(*read_file(dir.path("file")) == "precious");
  fs::create_symlink("/nowhere", dir.path("link"));
  CHECK(refused(dir.path("link"), Code::kFailedPrecondition).find("is no socket") !=
        std::string::npos);
  fs::create_directory(dir.path("dir"));
  CHECK(refused(dir.path("dir"), Code::kFailedPrecondition).find("is no socket") !=
        std::string::npos);
  CHECK(dir.entries() == 3);
}

TEST_CASE("listener: impossible paths are refused in words") {
  const SocketDir dir;
  const std::string longest = dir.path(std::string(107 - dir.path("").size(), 'x'));
  REQUIRE(longest.size() == 107);
  { const Listener listener = listening(longest); }
  CHECK(refused(longest + "x", Code::kInvalidArgument).find("108 bytes, the kernel takes 107") !=
        std::string::npos);
  CHECK(refused("relative.sock", Code::kInvalidArgument).find("not absolute") != std::string::npos);
  CHECK(refused(dir.path(std::string("a\0b", 3)), Code::kInvalidArgument).find("NUL") !=
        std::string::npos);
  CHECK(refused(dir.path("no/such/s"), Code::kNotFound).find("does not exist: create it") !=
        std::string::npos);
  REQUIRE(write_file(dir.path("file"), ""));
  CHECK(refused(dir.path("file/s"), Code::kFailedPrecondition).find("is no directory") !=
        std::string::npos);
}

TEST_CASE("listener: the file is removed once, and never a successor's") {
  const SocketDir dir;
  {
    Listener listener = listening(dir.path("s"));
    listener.remove_file();
    CHECK_FALSE(fs::exists(dir.path("s")));
    listener.remove_file();
  }
  {
    const Listener old = listening(dir.path("s"));
    fs::rename(dir.path("s"), dir.path("aside"));
    UniqueFd successor = bound(dir.path("s"), SOCK_STREAM);
  }
  CHECK(fs::exists(dir.path("s")));
  fs::remove(dir.path("s"));
  fs::remove(dir.path("aside"));
  {
    Listener listener = listening(dir.path("s"));
    const UniqueFd fd = listener.take_fd();
    Listener moved = std::move(listener);
    CHECK(fs::exists(dir.path("s")));
    moved.keep_file();
  }
  CHECK(fs::exists(dir.path("s")));
}

TEST_CASE("listener: one daemon per state directory") {
  const SocketDir dir;
  {
    const Result<UniqueFd> lock = lock_state_dir(dir.path("lock"));
    REQUIRE(lock);
    CHECK((::fcntl(lock->get(), F_GETFD) & FD_CLOEXEC) != 0);
    const Result<UniqueFd> second = lock_state_dir(dir.path("lock"));
    REQUIRE_FALSE(second);
    CHECK(second.error().code == Code::kFailedPrecondition);
    CHECK(second.error().message.find(fmt::format("the daemon with pid {} ", ::getpid())) == 0);
    CHECK(second.error().message.find("--dir") != std::string::npos);
  }
  CHECK(lock_state_dir(dir.path("lock")));
  CHECK(lock_state_dir(dir.path("no/lock")).error().code == Code::kNotFound);
}

}  // namespace kuasar::daemon
