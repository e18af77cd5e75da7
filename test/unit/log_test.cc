#include "base/log.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <ctime>
#include <string>

#include "base/log_entry.h"
#include "base/unique_fd.h"

namespace kuasar::log {
namespace {

// 2024-02-29T12:34:56.007Z
constexpr timespec kLeapDay{1709210096, 7'999'999};

}  // namespace

TEST_CASE("log: a journal entry has priority, program, sandbox and container as fields") {
  CHECK(journal_entry(Level::kWarning, "runc-sandboxer", {"pod", "app"}, "hello") ==
        "PRIORITY=4\nSYSLOG_IDENTIFIER=runc-sandboxer\nKUASAR_SANDBOX=pod\nKUASAR_CONTAINER=app\n"
        "MESSAGE=hello\n");
  CHECK(journal_entry(Level::kInfo, "x", {"pod", {}}, "hello") ==
        "PRIORITY=6\nSYSLOG_IDENTIFIER=x\nKUASAR_SANDBOX=pod\nMESSAGE=hello\n");
  CHECK(journal_entry(Level::kError, "x", {}, "") == "PRIORITY=3\nSYSLOG_IDENTIFIER=x\nMESSAGE=\n");
  // syslog has nothing below debug.
  for (const Level level : {Level::kDebug, Level::kTrace}) {
    CHECK(journal_entry(level, "x", {}, "m").starts_with("PRIORITY=7\n"));
  }
}

TEST_CASE("log: a text entry has time, level, sandbox and container") {
  CHECK(text_entry(Level::kInfo, kLeapDay, {"pod", "app"}, "hello") ==
        "2024-02-29T12:34:56.007Z INFO  [sandbox=pod] [container=app] hello\n");
  CHECK(text_entry(Level::kError, kLeapDay, {}, "hello") ==
        "2024-02-29T12:34:56.007Z ERROR hello\n");
  CHECK(text_entry(Level::kTrace, kLeapDay, {{}, "app"}, "") ==
        "2024-02-29T12:34:56.007Z TRACE [container=app] \n");
}

TEST_CASE("log: what a message quotes can neither begin a line nor add a field") {
  CHECK(escaped("a\nb\tc\x1b[31m\x7f") == "a\\nb\\x09c\\x1b[31m\\x7f");
  CHECK(escaped(std::string("a\0b", 3)) == "a\\x00b");
  CHECK(escaped("caf\xc3\xa9 \\n \"") == "caf\xc3\xa9 \\n \"");
  CHECK(journal_entry(Level::kInfo, "x", {"p\nPRIORITY=0", "c\nMESSAGE=no"}, "m\nPRIORITY=0") ==
        "PRIORITY=6\nSYSLOG_IDENTIFIER=x\nKUASAR_SANDBOX=p\\nPRIORITY=0\n"
        "KUASAR_CONTAINER=c\\nMESSAGE=no\nMESSAGE=m\\nPRIORITY=0\n");
  CHECK(text_entry(Level::kInfo, kLeapDay, {"p\n", "c\r"}, "m\n") ==
        "2024-02-29T12:34:56.007Z INFO  [sandbox=p\\n] [container=c\\x0d] m\\n\n");
}

TEST_CASE("log: the journal is used only when JOURNAL_STREAM names this very stderr") {
  struct stat file {};
  file.st_dev = 8;
  file.st_ino = 4'294'967'297;
  CHECK(names_stream("8:4294967297", file));
  for (const char* other : {"8:1", "9:4294967297", "8", "", ":", "8:", "x:y", "-"}) {
    CAPTURE(other);
    CHECK_FALSE(names_stream(other, file));
  }
  CHECK_FALSE(names_stream(nullptr, file));
}

TEST_CASE("D10 log: a reader that hangs holds up nobody, and hears what it has missed") {
  int ends[2];
  REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
  const UniqueFd reader(ends[0]);
  const UniqueFd former(::fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3));
  REQUIRE(::fcntl(ends[1], F_SETPIPE_SZ, 4096) > 0);
  REQUIRE(::dup2(ends[1], STDERR_FILENO) == STDERR_FILENO);
  ::close(ends[1]);
  const std::uint64_t before = dropped();
  init(Level::kInfo, "x");
  const auto begun = std::chrono::steady_clock::now();
  for (int i = 0; i < 1000; ++i) info({}, "a line that nobody reads, number {}", i);
  const auto took = std::chrono::steady_clock::now() - begun;
  const std::uint64_t lost = dropped() - before;
  std::string heard(8192, '\0');
  const ssize_t first = ::read(reader.get(), heard.data(), heard.size());
  info({}, "a line that is read");
  const ssize_t second = ::read(reader.get(), heard.data(), heard.size());
  heard.resize(static_cast<std::size_t>(std::max<ssize_t>(second, 0)));
  ::dup2(former.get(), STDERR_FILENO);
  init(Level::kInfo, "kuasar");
  CHECK(took < std::chrono::seconds(1));
  CHECK(first > 0);
  CHECK(lost > 900);
  CHECK(heard.find(std::to_string(lost) + " log lines were lost") != std::string::npos);
  CHECK(heard.ends_with("a line that is read\n"));
}

}  // namespace kuasar::log
