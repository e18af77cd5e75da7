#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <catch2/catch_test_macros.hpp>
#include <filesystem>
#include <iterator>
#include <memory>
#include <sstream>
#include <string>

#include "base/files.h"
#include "keeper/client.h"
#include "keeper/keeper_spawner.h"
#include "os/pidfd.h"
#include "os/process_usage.h"
#include "os/spawner.h"
#include "support/io_fixture.h"
#include "support/wait.h"

namespace kuasar::test {

/// A program of the build tree: <build>/test/<tests> and <build>/bin/<name>.
inline std::string built_program(const std::string& name) {
  namespace fs = std::filesystem;
  return fs::read_symlink("/proc/self/exe").parent_path().parent_path() / "bin" / name;
}

inline os::ProcessSpec shell_spec(const std::string& script) {
  os::ProcessSpec spec;
  spec.argv = {"sh", "-c", script};
  spec.env = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin"};
  return spec;
}

/// How many children a process has, zombies included (proc(5): children).
inline std::size_t children_of(pid_t pid) {
  const std::string id = std::to_string(pid);
  std::istringstream pids(read_file("/proc/" + id + "/task/" + id + "/children").value_or(""));
  return static_cast<std::size_t>(
      std::distance(std::istream_iterator<pid_t>(pids), std::istream_iterator<pid_t>()));
}

/// Proportional share of memory in kB; -1: there is no such process.
inline long pss_of(pid_t pid) {
  const auto use = os::memory_of(pid);
  return use ? static_cast<long>(use->pss / 1024) : -1;
}

inline UniqueFd listener(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  REQUIRE(::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  REQUIRE(::listen(fd.get(), 16) == 0);
  return fd;
}

inline UniqueFd dial(const std::string& path, int type = SOCK_STREAM) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  UniqueFd fd(::socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
  if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) return {};
  return fd;
}

// A file with a text in it, by a descriptor that stands at its beginning.
inline UniqueFd text_fd(const std::string& text) {
  UniqueFd fd(::memfd_create("keeper-test", MFD_CLOEXEC));
  REQUIRE(::pwrite(fd.get(), text.data(), text.size(), 0) == static_cast<ssize_t>(text.size()));
  return fd;
}

inline std::string text_of(const Result<UniqueFd>& fd) {
  REQUIRE(fd);
  char text[64];
  const ssize_t size = ::pread(fd->get(), text, sizeof text, 0);
  return {text, static_cast<std::size_t>(size > 0 ? size : 0)};
}

/// A directory with a keeper's socket in it; kills the keeper at the end, by its pidfd.
class KeeperFixture {
 public:
  KeeperFixture() {
    char name[] = "/tmp/kuasar-keeper-test.XXXXXX";
    REQUIRE(::mkdtemp(name) != nullptr);
    dir = name;
    socket = dir / "keeper.sock";
  }
  KeeperFixture(const KeeperFixture&) = delete;
  KeeperFixture& operator=(const KeeperFixture&) = delete;
  ~KeeperFixture() {
    if (client) {
      // The test's children are named: they end with it.
      for (const auto& [key, child] : client->children()) {
        (void)os::pidfd_signal(child.pidfd.get(), SIGKILL);
      }
      kill_keeper();
    }
    std::error_code ec;
    std::filesystem::remove_all(dir, ec);
  }

  Result<std::unique_ptr<keeper::KeeperClient>> try_connect() {
    return keeper::KeeperClient::connect(io.executor(), {socket, built_program("kuasar-keeper")});
  }
  keeper::KeeperClient& connect() {
    client.reset();
    auto made = try_connect();
    if (!made) FAIL(made.error().message);
    client = std::move(*made);
    return *client;
  }
  /// SIGKILL, and waits until it is dead.
  void kill_keeper() {
    const Result<UniqueFd> pidfd = os::pidfd_open(client->keeper_pid());
    if (!pidfd) return;
    (void)os::pidfd_signal(pidfd->get(), SIGKILL);
    CHECK(wait_until([&] { return os::pidfd_exited(pidfd->get()); }, std::chrono::seconds(5)));
  }

  std::filesystem::path dir;
  std::filesystem::path socket;
  IoFixture io;
  std::unique_ptr<keeper::KeeperClient> client;
};

}  // namespace kuasar::test
