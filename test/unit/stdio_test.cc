#include "task/stdio.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <termios.h>
#include <unistd.h>

#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <thread>

#include "os/fifo.h"
#include "os/local_fd_holder.h"
#include "support/io_fixture.h"

namespace kuasar::task {
namespace {

using namespace std::chrono_literals;
namespace fs = std::filesystem;

/// FIFOs in a temporary directory, and the part of containerd that reads them.
struct StdioFixture {
  test::IoFixture io;
  os::LocalFdHolder holder;
  TaskGroup group{io.executor()};
  fs::path dir;
  bool connected = true;

  StdioFixture() {
    char name[] = "/tmp/kuasar-stdio-XXXXXX";
    dir = ::mkdtemp(name);
    for (const char* fifo : {"in", "out", "err"}) {
      REQUIRE(::mkfifo((dir / fifo).c_str(), 0600) == 0);
    }
  }
  ~StdioFixture() {
    end_daemon();
    fs::remove_all(dir);
  }
  /// On the io thread: a cancellation from outside would be posted, and its target may be gone.
  void end_daemon() { io.run(end_pumps(group)); }
  static Task<> end_pumps(TaskGroup& pumps) {
    pumps.cancel();
    co_await pumps.join();
  }

  StdioPlan plan(bool pump, bool with_stdin = false) {
    StdioPlan plan;
    plan.container = "c1";
    plan.exec = pump ? "e1" : "";
    plan.paths = {with_stdin ? dir / "in" : "", dir / "out", dir / "err"};
    plan.pump = pump;
    plan.console_dir = dir;
    plan.connected = [this] { return connected; };
    return plan;
  }
  std::shared_ptr<Stdio> open(StdioPlan plan) {
    auto stdio = Stdio::open(group, io.executor(), holder, plan);
    INFO((stdio ? "" : stdio.error().message));
    REQUIRE(stdio.has_value());
    return *stdio;
  }
  UniqueFd reader(const char* fifo = "out") {
    return UniqueFd(::open((dir / fifo).c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  }
  /// Runs the io thread until `done` says so.
  template <typename Done>
  void until(Done done, std::chrono::milliseconds limit = 5s) {
    const auto end = std::chrono::steady_clock::now() + limit;
    while (!done()) {
      REQUIRE(std::chrono::steady_clock::now() < end);
      io.run(sleep_for(1ms));
    }
  }
  /// What can be read now; `ended` tells of the end of the file.
  static std::string read_now(int fd, bool& ended) {
    std::string text;
    char buffer[65536];
    for (;;) {
      const ssize_t got = ::read(fd, buffer, sizeof buffer);
      if (got == 0) ended = true;
      if (got <= 0) return text;
      text.append(buffer, static_cast<std::size_t>(got));
    }
  }
  std::string read_all(int fd) {
    std::string text;
    bool ended = false;
    until([&] {
      text += read_now(fd, ended);
      return ended;
    });
    return text;
  }
  bool is_gone(const std::string& name) {
    const Result<UniqueFd> held = holder.get(name);
    return !held && held.error().code == Code::kNotFound;
  }
  bool at_end(int fd) {
    bool ended = false;
    read_now(fd, ended);
    return ended;
  }
};

void write_text(int fd, const std::string& text) {
  REQUIRE(::write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size()));
}

bool blocking(int fd) {
  return (::fcntl(fd, F_GETFL) & O_NONBLOCK) == 0;
}

TEST_CASE_METHOD(StdioFixture, "T12 stdio: PASS gives the FIFO itself, ends with the process") {
  const auto stdio = open(plan(false));
  const UniqueFd containerd = reader();
  UniqueFd workload = os::duplicate(stdio->stdout_fd()).value();
  CHECK(blocking(workload.get()));
  stdio->drop_process_ends();
  CHECK(stdio->stdout_fd() == -1);
  REQUIRE(stdio->begin());
  write_text(workload.get(), "hello");
  workload.reset();
  bool ended = false;
  CHECK(read_now(containerd.get(), ended) == "hello");
  CHECK_FALSE(ended);
  stdio->process_ended();
  CHECK(at_end(containerd.get()));
  CHECK(is_gone("io/c1/-/stdout.r"));
  CHECK(is_gone("io/c1/-/stdout.w"));
  stdio->close();
  CHECK(holder.size() == 0);
}

TEST_CASE_METHOD(StdioFixture, "stdio: a workload that sets O_NONBLOCK changes its own end alone") {
  const bool pump = GENERATE(false, true);
  const auto stdio = open(plan(pump));
  const UniqueFd containerd = reader();
  UniqueFd workload = os::duplicate(stdio->stdout_fd()).value();
  REQUIRE(stdio->begin());
  REQUIRE(::fcntl(workload.get(), F_SETFL, O_NONBLOCK) == 0);
  const UniqueFd ours(::open((dir / "out").c_str(), O_WRONLY | O_CLOEXEC));
  CHECK(blocking(ours.get()));
  // It looks at EAGAIN and goes on: nothing is lost, nothing is doubled.
  std::string sent;
  std::string got;
  bool ended = false;
  for (int i = 0; i < 20000; ++i) {
    const std::string line = std::to_string(i) + "\n";
    while (::write(workload.get(), line.data(), line.size()) < 0) {
      REQUIRE(errno == EAGAIN);
      io.run(sleep_for(100us));
      got += read_now(containerd.get(), ended);
    }
    sent += line;
  }
  workload.reset();
  stdio->process_ended();
  const_cast<UniqueFd&>(ours).reset();
  got += read_all(containerd.get());
  CHECK(got == sent);
  stdio->close();
}

TEST_CASE_METHOD(StdioFixture, "stdio: PUMP moves everything, then ends the FIFO") {
  const auto stdio = open(plan(true));
  const UniqueFd containerd = reader();
  UniqueFd workload = os::duplicate(stdio->stdout_fd()).value();
  CHECK(blocking(workload.get()));
  REQUIRE(stdio->begin());
  // More than the FIFO takes: 64 KiB in the pipe, 64 KiB in the FIFO.
  write_text(workload.get(), std::string(60000, 'a'));
  io.settle();
  write_text(workload.get(), std::string(60000, 'b'));
  workload.reset();
  stdio->process_ended();
  io.settle();
  CHECK(read_all(containerd.get()) == std::string(60000, 'a') + std::string(60000, 'b'));
  CHECK(is_gone("io/c1/e1/stdout.pipe"));
  stdio->close();
  CHECK(holder.size() == 0);
}

TEST_CASE_METHOD(StdioFixture, "T22 stdio: 40 KiB unread wait for a containerd that was away") {
  const bool pump = GENERATE(false, true);
  const auto stdio = open(plan(pump));
  UniqueFd workload = os::duplicate(stdio->stdout_fd()).value();
  REQUIRE(stdio->begin());
  connected = false;
  const std::string text(40 << 10, 'x');
  write_text(workload.get(), text);
  workload.reset();
  stdio->process_ended();
  io.run(sleep_for(20ms));
  // Its reader opens only while a writer exists, so ours must be there...
  const UniqueFd containerd = reader();
  char first = 0;
  REQUIRE(::read(containerd.get(), &first, 1) == 1);
  connected = true;
  stdio->reader_came();
  io.settle();
  // ...until everything is read.
  bool ended = false;
  std::string got = read_now(containerd.get(), ended);
  CHECK_FALSE(ended);
  got += read_all(containerd.get());
  CHECK(first + got == text);
  stdio->close();
}

TEST_CASE_METHOD(StdioFixture,
                 "T22 stdio: an end is told at once when nothing is unread, and after "
                 "2 s when nobody reads") {
  const auto stdio = open(plan(false));
  UniqueFd workload = os::duplicate(stdio->stdout_fd()).value();
  REQUIRE(stdio->begin());
  connected = false;
  write_text(workload.get(), "unread");
  workload.reset();
  stdio->process_ended();
  const UniqueFd out = reader();
  const UniqueFd err = reader("err");
  const auto began = std::chrono::steady_clock::now();
  stdio->reader_came();
  until([&] { return at_end(err.get()); });
  CHECK(std::chrono::steady_clock::now() - began < 1s);
  until([&] { return is_gone("io/c1/-/stdout.w"); });
  const auto took = std::chrono::steady_clock::now() - began;
  CHECK(took >= 2s);
  CHECK(took < 4s);
  stdio->close();
}

// containerd opens its reader on a thread of its own, blocking, and that may come last.
TEST_CASE_METHOD(StdioFixture,
                 "stdio: a reader that comes after the end gets everything and its end") {
  const bool pump = GENERATE(false, true);
  const std::string said = GENERATE("", "short");
  const auto stdio = open(plan(pump));
  const UniqueFd err = reader("err");
  UniqueFd workload = os::duplicate(stdio->stdout_fd()).value();
  REQUIRE(stdio->begin());
  write_text(workload.get(), said);
  workload.reset();
  stdio->process_ended();
  io.run(sleep_for(50ms));
  std::atomic<int> opened{-1};
  std::thread late([&] { opened = ::open((dir / "out").c_str(), O_RDONLY | O_CLOEXEC); });
  io.run(sleep_for(100ms));
  const bool came = opened >= 0;
  CHECK(came);
  // Lets it go in any case.
  const UniqueFd writer(::open((dir / "out").c_str(), O_RDWR | O_NONBLOCK | O_CLOEXEC));
  late.join();
  const_cast<UniqueFd&>(writer).reset();
  const UniqueFd containerd(opened.load());
  REQUIRE(::fcntl(containerd.get(), F_SETFL, O_NONBLOCK) == 0);
  CHECK(read_all(containerd.get()) == said);
  stdio->close();
  CHECK(holder.size() == 0);
}

TEST_CASE_METHOD(StdioFixture, "stdio: a reader that never comes is waited for 2 s") {
  const auto stdio = open(plan(false));
  REQUIRE(stdio->begin());
  const auto began = std::chrono::steady_clock::now();
  stdio->process_ended();
  until([&] { return is_gone("io/c1/-/stdout.w"); });
  const auto took = std::chrono::steady_clock::now() - began;
  CHECK(took >= 2s);
  CHECK(took < 4s);
  stdio->close();
  CHECK(holder.size() == 0);
}

TEST_CASE_METHOD(StdioFixture, "T23 stdio: close() cuts a pump whose pipe is held by a child") {
  const auto stdio = open(plan(true));
  const UniqueFd containerd = reader();
  const UniqueFd child = os::duplicate(stdio->stdout_fd()).value();
  REQUIRE(stdio->begin());
  write_text(child.get(), "last words");
  stdio->process_ended();
  io.settle();
  bool ended = false;
  std::string got = read_now(containerd.get(), ended);
  CHECK_FALSE(ended);
  stdio->close();
  got += read_all(containerd.get());
  CHECK(got == "last words");
  CHECK(holder.size() == 0);
}

TEST_CASE_METHOD(StdioFixture,
                 "T23 stdio: an init's pump is cut 10 s after the exit, counted through a "
                 "restart") {
  StdioPlan init = plan(true);
  init.exec.clear();
  auto first = open(init);
  const UniqueFd containerd = reader();
  const UniqueFd child = os::duplicate(first->stdout_fd()).value();
  REQUIRE(first->begin());
  io.settle();
  end_daemon();
  first.reset();
  write_text(child.get(), "kept");
  const auto second = Stdio::recover(group, io.executor(), holder, init, false);
  REQUIRE(second->begin());
  const auto began = std::chrono::steady_clock::now();
  second->process_ended(9500ms);
  std::string got = read_all(containerd.get());
  CHECK(got == "kept");
  CHECK(std::chrono::steady_clock::now() - began < 3s);
  second->close();
  CHECK(holder.size() == 0);
}

TEST_CASE_METHOD(StdioFixture, "P3 stdio: an exec's pump is cut at its Delete only") {
  auto first = open(plan(true));
  const UniqueFd containerd = reader();
  const UniqueFd child = os::duplicate(first->stdout_fd()).value();
  REQUIRE(first->begin());
  io.settle();
  end_daemon();
  first.reset();
  const auto second = Stdio::recover(group, io.executor(), holder, plan(true), false);
  REQUIRE(second->begin());
  // Long ago.
  second->process_ended(std::chrono::hours(1));
  io.settle();
  bool ended = false;
  write_text(child.get(), "still heard");
  std::string got;
  CHECK(io.comes_to([&] { return (got += read_now(containerd.get(), ended)) == "still heard"; }));
  CHECK_FALSE(ended);
  second->close();
  CHECK(read_all(containerd.get()) == "");
  CHECK(holder.size() == 0);
}

TEST_CASE_METHOD(StdioFixture, "stdio: no byte is lost when the daemon is replaced under a pump") {
  auto stdio = open(plan(true));
  const UniqueFd containerd = reader();
  UniqueFd workload = os::duplicate(stdio->stdout_fd()).value();
  REQUIRE(stdio->begin());
  std::string sent;
  std::string got;
  bool ended = false;
  for (int round = 0; round < 20; ++round) {
    for (int i = 0; i < 500; ++i) {
      const std::string line = std::to_string(round) + ":" + std::to_string(i) + "\n";
      write_text(workload.get(), line);
      sent += line;
    }
    io.settle();
    if (round % 2 == 1) got += read_now(containerd.get(), ended);
    end_daemon();
    stdio = Stdio::recover(group, io.executor(), holder, plan(true), false);
    REQUIRE(stdio->begin());
  }
  workload.reset();
  stdio->process_ended();
  got += read_all(containerd.get());
  CHECK(got == sent);
  stdio->close();
}

TEST_CASE_METHOD(StdioFixture, "stdio: input stays open until CloseIO, closing twice is harmless") {
  const auto stdio = open(plan(false, true));
  UniqueFd process = os::duplicate(stdio->stdin_fd()).value();
  CHECK(blocking(process.get()));
  REQUIRE(stdio->begin());
  REQUIRE(::fcntl(process.get(), F_SETFL, O_NONBLOCK) == 0);
  bool ended = false;
  for (const char* words : {"first", "second"}) {
    // An attach that comes, writes and goes.
    const UniqueFd attach(::open((dir / "in").c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC));
    REQUIRE(attach);
    write_text(attach.get(), words);
    CHECK(read_now(process.get(), ended) == words);
  }
  read_now(process.get(), ended);
  CHECK_FALSE(ended);
  stdio->close_stdin();
  CHECK(at_end(process.get()));
  stdio->close_stdin();
  stdio->process_ended();
  stdio->close_stdin();
  stdio->close();
  stdio->close();
  CHECK(holder.size() == 0);
}

TEST_CASE_METHOD(StdioFixture, "stdio: a failed open leaves nothing held") {
  StdioPlan broken = plan(true, true);
  broken.paths.stderr_path = dir / "none";
  const auto stdio = Stdio::open(group, io.executor(), holder, broken);
  REQUIRE_FALSE(stdio.has_value());
  CHECK(stdio.error().code == Code::kNotFound);
  CHECK(holder.size() == 0);
}

/// Plays the OCI runtime: makes a terminal and sends its master end.
UniqueFd send_terminal(const std::string& path) {
  UniqueFd master(::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC));
  REQUIRE(::grantpt(master.get()) == 0);
  REQUIRE(::unlockpt(master.get()) == 0);
  UniqueFd slave(::open(::ptsname(master.get()), O_RDWR | O_NOCTTY | O_CLOEXEC));
  REQUIRE(slave);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path.c_str(), sizeof address.sun_path - 1);
  const UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  REQUIRE(::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) ==
          0);
  char name[] = "/dev/ptmx";
  iovec bytes{name, sizeof name};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))]{};
  msghdr message{};
  message.msg_iov = &bytes;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  const int fd = master.get();
  std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
  REQUIRE(::sendmsg(socket.get(), &message, 0) > 0);
  return slave;
}

TEST_CASE_METHOD(StdioFixture, "stdio: a terminal is fetched, sized, pumped both ways, resumed") {
  StdioPlan with_tty = plan(false, true);
  with_tty.terminal = true;
  auto stdio = open(with_tty);
  const UniqueFd containerd = reader();
  UniqueFd slave = send_terminal(stdio->console_socket());
  REQUIRE(stdio->begin());
  CHECK_FALSE(fs::exists(stdio->console_socket()));
  REQUIRE(stdio->resize(97, 31));
  winsize size{};
  REQUIRE(::ioctl(slave.get(), TIOCGWINSZ, &size) == 0);
  CHECK(size.ws_col == 97);
  CHECK(size.ws_row == 31);
  termios raw{};
  REQUIRE(::tcgetattr(slave.get(), &raw) == 0);
  ::cfmakeraw(&raw);
  REQUIRE(::tcsetattr(slave.get(), TCSANOW, &raw) == 0);
  REQUIRE(::fcntl(slave.get(), F_SETFL, O_NONBLOCK) == 0);

  const UniqueFd typist(::open((dir / "in").c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC));
  write_text(typist.get(), "typed");
  std::string typed;
  bool ended = false;
  until([&] { return (typed += read_now(slave.get(), ended)) == "typed"; });
  write_text(slave.get(), "shown");
  std::string shown;
  until([&] { return (shown += read_now(containerd.get(), ended)) == "shown"; });

  end_daemon();
  stdio = Stdio::recover(group, io.executor(), holder, with_tty, true);
  REQUIRE(stdio->begin());
  write_text(typist.get(), "again");
  until([&] { return (typed += read_now(slave.get(), ended)) == "typedagain"; });
  write_text(slave.get(), "last");
  // All slaves closed: the master's EIO is the end.
  slave.reset();
  stdio->process_ended();
  CHECK(read_all(containerd.get()) == "last");
  stdio->close();
  CHECK(holder.size() == 0);
}

}  // namespace
}  // namespace kuasar::task
