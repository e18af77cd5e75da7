#include "base/log.h"

#include <sys/stat.h>

#include <catch2/catch_test_macros.hpp>
#include <ctime>
#include <string>

#include "base/log_entry.h"

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

}  // namespace kuasar::log
