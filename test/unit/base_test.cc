#include <catch2/catch_test_macros.hpp>
#include <cerrno>
#include <filesystem>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/files.h"
#include "base/ids.h"
#include "base/log.h"
#include "base/rollback.h"
#include "base/unique_fd.h"

namespace kuasar {
namespace {

Result<int> half(int n) {
  if (n % 2 != 0) return fail(Code::kInvalidArgument, "{} is odd", n);
  return n / 2;
}

Result<int> quarter(int n) {
  TRY(const int h, half(n));
  TRY(const int q, half(h));
  return q;
}

TEST_CASE("Error: TRY passes values on and errors out") {
  CHECK(quarter(8).value() == 2);
  const Result<int> failed = quarter(6);
  REQUIRE_FALSE(failed);
  CHECK(failed.error().message == "3 is odd");
  CHECK(failed.error().code == Code::kInvalidArgument);
}

TEST_CASE("Error: errno keeps its number, gets a code and words") {
  const Error error = Error::from_errno_value(ENOSPC, "write", "/x").context("save {}", "pod");
  CHECK(error.message == "save pod: write /x: No space left on device");
  CHECK(error.err == ENOSPC);
  CHECK(error.code == Code::kResourceExhausted);
  CHECK(code_from_errno(ENOENT) == Code::kNotFound);
  CHECK(code_from_errno(EACCES) == Code::kPermissionDenied);
}

TEST_CASE("ids: what may become a path component") {
  for (const char* good : {"a", "A-b_c.9", "..."}) CHECK(validate_id("id", good));
  CHECK(validate_id("id", std::string(128, 'x')));
  const std::vector<std::string> bad = {"",
                                        ".",
                                        "..",
                                        "/",
                                        "a/b",
                                        std::string("a\0b", 3),
                                        "a b",
                                        "ü",
                                        "\n",
                                        std::string(129, 'x'),
                                        std::string(10240, 'x')};
  for (const std::string& id : bad) {
    const Result<> checked = validate_id("sandbox_id", id);
    REQUIRE_FALSE(checked);
    CHECK(checked.error().code == Code::kInvalidArgument);
    CHECK(checked.error().message.starts_with("sandbox_id"));
    CHECK(checked.error().message.size() < 200);
  }
}

TEST_CASE("files: an atomic write replaces whole and leaves no temporary") {
  char dir[] = "/tmp/kuasar-base-XXXXXX";
  REQUIRE(::mkdtemp(dir) != nullptr);
  const std::filesystem::path file = std::filesystem::path(dir) / "f";
  REQUIRE(write_file_atomic(file, "one"));
  REQUIRE(write_file_atomic(file, "two"));
  CHECK(read_file(file).value() == "two");
  CHECK(std::distance(std::filesystem::directory_iterator(dir), {}) == 1);
  CHECK((std::filesystem::status(file).permissions() & std::filesystem::perms::all) ==
        std::filesystem::perms(0600));

  const Result<std::string> too_long = read_file(file, 2);
  REQUIRE_FALSE(too_long);
  CHECK(too_long.error().code == Code::kResourceExhausted);
  CHECK(read_file(std::filesystem::path(dir) / "none").error().code == Code::kNotFound);
  CHECK_FALSE(write_file_atomic(std::filesystem::path(dir) / "no" / "f", "x"));
  std::filesystem::remove_all(dir);
}

TEST_CASE("Rollback: undoes in reverse unless committed") {
  std::string order;
  {
    Rollback rollback;
    rollback.add([&] { order += "a"; });
    rollback.add([&] { order += "b"; });
  }
  CHECK(order == "ba");
  {
    Rollback rollback;
    rollback.add([&] { order += "c"; });
    rollback.commit();
  }
  CHECK(order == "ba");
}

TEST_CASE("UniqueFd: closes once, moves") {
  UniqueFd a(::dup(0));
  const int number = a.get();
  UniqueFd b = std::move(a);
  CHECK_FALSE(a.valid());
  CHECK(b.get() == number);
  b.reset();
  CHECK(::close(number) == -1);
}

TEST_CASE("log: level names") {
  CHECK(log::parse_level("info") == log::Level::kInfo);
  CHECK(log::parse_level("warn") == log::Level::kWarning);
  CHECK_FALSE(log::parse_level("loud"));
}

}  // namespace
}  // namespace kuasar
