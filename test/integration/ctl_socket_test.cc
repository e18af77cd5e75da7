// Who may talk to a daemon as kuasar-ctl does.

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <cstring>
#include <filesystem>
#include <string>

#include "unit/ctl_fixture.h"

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;

// Connects as nobody and waits for the end of the connection: 0 when it was closed without a
// word, 1 when it could not connect.
[[noreturn]] void knock_as_nobody(const char* path) {
  constexpr uid_t kNobody = 65534;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path, sizeof address.sun_path - 1);
  const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
  if (::setresuid(kNobody, kNobody, kNobody) != 0) ::_exit(3);
  if (::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) ::_exit(1);
  char byte = 0;
  ::_exit(::read(fd, &byte, 1) == 0 ? 0 : 2);
}

int outcome_of_nobody(CtlFixture& f) {
  const std::string path = f.store.paths().ctl_socket();
  const pid_t child = ::fork();
  if (child == 0) knock_as_nobody(path.c_str());
  int status = -1;
  REQUIRE(f.eventually([&] { return ::waitpid(child, &status, WNOHANG) == child; }));
  REQUIRE(WIFEXITED(status));
  return WEXITSTATUS(status);
}

}  // namespace

TEST_CASE("ctl socket: for root alone, by its mode and by its peers", "[root]") {
  if (::geteuid() != 0) SKIP("needs root");
  CtlFixture f;
  f.begin();
  const fs::path socket = f.store.paths().ctl_socket();
  struct stat st {};
  REQUIRE(::lstat(socket.c_str(), &st) == 0);
  CHECK((st.st_mode & 07777) == 0600);
  REQUIRE(::lstat(f.store.paths().ctl_execs().c_str(), &st) == 0);
  CHECK((st.st_mode & 07777) == 0700);

  // Everybody may come as far as the socket: its mode keeps them out.
  REQUIRE(::chmod(f.dir.c_str(), 0755) == 0);
  CHECK(outcome_of_nobody(f) == 1);
  // Even with that gone a peer that is not root is closed at once.
  REQUIRE(::chmod(socket.c_str(), 0666) == 0);
  CHECK(outcome_of_nobody(f) == 0);
  const auto client = f.client();
  CHECK(f.call<ctlapi::HealthResponse>(*client, "Health", ctlapi::HealthRequest()));
  f.stop();
  CHECK_FALSE(fs::exists(socket));
}

}  // namespace kuasar::test
