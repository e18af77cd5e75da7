// What the keeper does with those that are no daemon, or not the only one.

#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <catch2/catch_test_macros.hpp>
#include <cerrno>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "support/keeper_fixture.h"
#include "support/process.h"

namespace kuasar::keeper {
namespace {

using test::dial;
using test::KeeperFixture;
using test::text_fd;
using test::text_of;

// What the keeper of a fixture answers to raw bytes; nothing when it closes the connection.
struct Raw {
  explicit Raw(const std::string& path) : fd(dial(path, SOCK_SEQPACKET)) { REQUIRE(fd); }
  bool send(const void* bytes, std::size_t size, std::vector<int> fds = {}) const {
    iovec part{const_cast<void*>(bytes), size};
    std::vector<char> control(CMSG_SPACE(fds.size() * sizeof(int)));
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    if (!fds.empty()) {
      message.msg_control = control.data();
      message.msg_controllen = control.size();
      cmsghdr* c = CMSG_FIRSTHDR(&message);
      c->cmsg_level = SOL_SOCKET;
      c->cmsg_type = SCM_RIGHTS;
      c->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
      std::memcpy(CMSG_DATA(c), fds.data(), fds.size() * sizeof(int));
    }
    return ::sendmsg(fd.get(), &message, MSG_NOSIGNAL) >= 0;
  }
  bool request(wire::Type type, std::string_view name, std::string_view body,
               std::vector<int> fds = {}) const {
    char packet[wire::kMaxMessage];
    wire::Header header{};
    header.version = wire::kVersion;
    header.type = type;
    const std::size_t size = wire::encode(packet, header, name, body);
    return send(packet, size, std::move(fds));
  }
  // The error and the words of the next answer; "closed" at the end of the connection.
  std::pair<int, std::string> answer() const {
    char packet[wire::kMaxMessage];
    const timeval limit{5, 0};
    ::setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    const ssize_t size = ::recv(fd.get(), packet, sizeof packet, 0);
    if (size <= 0) return {errno == EAGAIN && size < 0 ? EAGAIN : 0, "closed"};
    wire::Message message{};
    if (!wire::decode(packet, static_cast<std::size_t>(size), message)) return {-1, "malformed"};
    return {message.header.error, std::string(message.body)};
  }
  void hello() const {
    const wire::Hello body{0};
    REQUIRE(request(wire::kHello, "", {reinterpret_cast<const char*>(&body), sizeof body}));
    REQUIRE(answer().first == 0);
  }
  UniqueFd fd;
};

TEST_CASE_METHOD(KeeperFixture, "keeper: garbage closes its connection and changes nothing") {
  connect();
  REQUIRE(client->hold("pod/a", text_fd("held").get()));
  const char garbage[] = "GET / HTTP/1.1\r\n\r\n";
  Raw words(socket);
  REQUIRE(words.send(garbage, sizeof garbage));
  CHECK(words.answer() == std::pair(EBADMSG, std::string("this is no message of a Kuasar daemon")));
  CHECK(words.answer().second == "closed");
  Raw large(socket);
  const std::string oversized(wire::kMaxMessage + 100, 'x');
  REQUIRE(large.send(oversized.data(), oversized.size()));
  CHECK(large.answer().first == EBADMSG);
  Raw early(socket);
  REQUIRE(early.request(wire::kList, "", ""));
  CHECK(early.answer().second.find("HELLO") != std::string::npos);
  CHECK(early.answer().second == "closed");
  // More silent ones than it keeps: the oldest goes.
  std::vector<Raw> silent;
  for (int i = 0; i < 9; ++i) silent.emplace_back(socket.string());
  CHECK(silent.front().answer() == std::pair(0, std::string("closed")));
  // The daemon has noticed nothing.
  CHECK(client->hold("pod/b", text_fd("later").get()));
  CHECK(text_of(client->get("pod/a")) == "held");
}

TEST_CASE_METHOD(KeeperFixture, "keeper: wrong descriptors are refused in words") {
  connect();
  const pid_t pid = client->keeper_pid();
  client.reset();
  Raw daemon(socket);
  daemon.hello();
  const UniqueFd file = text_fd("text");
  const auto refused = [&](wire::Type type, std::string_view name, std::string_view body,
                           std::vector<int> fds) {
    REQUIRE(daemon.request(type, name, body, std::move(fds)));
    const auto [error, text] = daemon.answer();
    CHECK(error == (text.find("not all") == 0 ? EMFILE : EINVAL));
    return text;
  };
  const int fd = file.get();
  CHECK(refused(wire::kHold, "a", "", {}) == "0 descriptors came instead of 1");
  CHECK(refused(wire::kHold, "a", "", {fd, fd}) == "2 descriptors came instead of 1");
  CHECK(refused(wire::kHold, "a", "", std::vector<int>(40, fd)).find("not all") == 0);
  CHECK(refused(wire::kHold, "", "", {fd}) == "the request needs a name");
  CHECK(refused(wire::kAccept, "a", "", {fd}) == "this descriptor is no listening socket");
  const wire::Info info{0, 1, 0, 0, 0};
  CHECK(refused(wire::kAdopt, "a", bytes_of(info), {fd}) == "this descriptor is no pidfd");
  CHECK(refused(wire::kSpawn, "a", "short", {}).find("malformed") != std::string::npos);
  REQUIRE(daemon.request(static_cast<wire::Type>(50), "", ""));
  CHECK(daemon.answer().second == "no request has the number 50");
  daemon.fd.reset();
  connect();
  CHECK(client->keeper_pid() == pid);
  CHECK(client->held("").empty());
  CHECK(client->children().empty());
}

TEST_CASE_METHOD(KeeperFixture, "keeper: another user is refused", "[root]") {
  if (::geteuid() != 0) SKIP("needs root to become somebody else");
  connect();
  REQUIRE(::chmod(dir.c_str(), 0755) == 0);
  struct stat st {};
  REQUIRE(::stat(socket.c_str(), &st) == 0);
  CHECK((st.st_mode & 0777) == 0600);
  REQUIRE(::chmod(socket.c_str(), 0666) == 0);
  const pid_t child = ::fork();
  if (child == 0) {
    if (::setresuid(65534, 65534, 65534) != 0) ::_exit(2);
    const UniqueFd fd = dial(socket, SOCK_SEQPACKET);
    char packet[512];
    const ssize_t size = fd ? ::recv(fd.get(), packet, sizeof packet, 0) : 0;
    wire::Message message{};
    if (size <= 0 || !wire::decode(packet, static_cast<std::size_t>(size), message)) ::_exit(3);
    ::_exit(message.header.error == EPERM && ::recv(fd.get(), packet, 1, 0) == 0 ? 0 : 4);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
  CHECK(client->hold("a", text_fd("a").get()));
}

TEST_CASE_METHOD(KeeperFixture, "keeper: a second daemon is served once the first is dead") {
  connect();
  REQUIRE(client->hold("pod/a", text_fd("held").get()));
  client.reset();
  int ends[2];
  REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
  const UniqueFd reader(ends[0]);
  UniqueFd writer(ends[1]);
  // An earlier daemon: it greets and stays, whatever happens to its connection.
  const pid_t first = ::fork();
  if (first == 0) {
    const Raw daemon(socket);
    daemon.hello();
    [[maybe_unused]] const ssize_t n = ::write(writer.get(), "x", 1);
    for (;;) ::pause();
  }
  char byte = 0;
  REQUIRE(::read(reader.get(), &byte, 1) == 1);
  connect();
  siginfo_t info{};
  // Dead before we were served: nothing to wait for.
  REQUIRE(::waitid(P_PID, static_cast<id_t>(first), &info, WEXITED | WNOHANG) == 0);
  CHECK(info.si_pid == first);
  CHECK(info.si_status == SIGKILL);
  CHECK(text_of(client->get("pod/a")) == "held");
}

TEST_CASE_METHOD(KeeperFixture, "keeper: a live socket is refused, a stale one replaced") {
  connect();
  const auto second =
      test::run_program({test::built_program("kuasar-keeper"), "--listen", socket, "--daemonize"});
  REQUIRE(second);
  CHECK(second->code == 1);
  CHECK(second->output.find("another keeper listens on") != std::string::npos);
  kill_keeper();
  CHECK(std::filesystem::exists(socket));
  REQUIRE(client->hold("a", text_fd("a").get()));
  const auto relative =
      test::run_program({test::built_program("kuasar-keeper"), "--listen", "keeper.sock"});
  REQUIRE(relative);
  CHECK(relative->code == 1);
}

}  // namespace
}  // namespace kuasar::keeper
