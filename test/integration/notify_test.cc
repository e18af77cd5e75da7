#include "daemon/notify.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>

#include "base/unique_fd.h"

namespace kuasar::daemon {
namespace {

std::string received(int fd) {
  char buffer[4096];
  const ssize_t n = ::recv(fd, buffer, sizeof buffer, MSG_DONTWAIT);
  return n < 0 ? std::string("nothing") : std::string(buffer, static_cast<std::size_t>(n));
}

}  // namespace

TEST_CASE("notify: the service manager gets one field per line, nobody else gets anything") {
  char dir[] = "/tmp/kuasar-notify-XXXXXX";
  REQUIRE(::mkdtemp(dir) != nullptr);
  const std::string path = std::string(dir) + "/notify";
  const UniqueFd manager(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path.c_str(), sizeof address.sun_path - 1);
  REQUIRE(::bind(manager.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);

  const char* old = std::getenv("NOTIFY_SOCKET");
  const std::string saved = old != nullptr ? old : "";
  ::unsetenv("NOTIFY_SOCKET");
  notify_ready("unheard");
  CHECK(received(manager.get()) == "nothing");

  ::setenv("NOTIFY_SOCKET", path.c_str(), 1);
  notify_ready("serving\nSTOPPING=1");
  CHECK(received(manager.get()) == "READY=1\nSTATUS=serving STOPPING=1");
  notify_status("3 pods");
  CHECK(received(manager.get()) == "STATUS=3 pods");
  notify_stopping("stopping");
  CHECK(received(manager.get()) == "STOPPING=1\nSTATUS=stopping");

  if (old != nullptr) {
    ::setenv("NOTIFY_SOCKET", saved.c_str(), 1);
  } else {
    ::unsetenv("NOTIFY_SOCKET");
  }
  std::filesystem::remove_all(dir);
}

}  // namespace kuasar::daemon
