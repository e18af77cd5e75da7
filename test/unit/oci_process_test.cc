#include <catch2/catch_test_macros.hpp>
#include <string>

#include "oci/process.h"

namespace kuasar::oci {

TEST_CASE("oci process: what the runtime gets is what came, with the call's terminal") {
  const auto plain = exec_process(
      R"({"user":{"uid":5,"gid":6},"args":["sh","-c","id"],"cwd":"/tmp","rlimits":[]})", false);
  REQUIRE(plain);
  CHECK(*plain == R"({"user":{"uid":5,"gid":6},"args":["sh","-c","id"],"cwd":"/tmp","rlimits":[],)"
                  R"("terminal":false})");
  const auto tty = exec_process(R"({"terminal":false,"args":["sh"],"cwd":"/"})", true);
  REQUIRE(tty);
  CHECK(*tty == R"({"terminal":true,"args":["sh"],"cwd":"/"})");
}

TEST_CASE("oci process: what cannot be run is refused by its name") {
  struct Case {
    const char* json;
    Code code;
    const char* begins;
  };
  const Case cases[] = {
      {"", Code::kInvalidArgument, "spec of the exec: "},
      {"[]", Code::kInvalidArgument, "process: expected an object, found an array"},
      {R"({"cwd":"/"})", Code::kInvalidArgument, "process.args: must not be empty"},
      {R"({"args":[],"cwd":"/"})", Code::kInvalidArgument, "process.args: must not be empty"},
      {R"({"args":[1],"cwd":"/"})", Code::kInvalidArgument, "process.args[0]: expected a string"},
      {R"({"args":["a"]})", Code::kInvalidArgument, "process.cwd: \"\" is not an absolute path"},
      {R"({"args":["a"],"cwd":"tmp"})", Code::kInvalidArgument, "process.cwd: \"tmp\""},
      {R"({"args":["a"],"cwd":"/","magic":1})", Code::kUnimplemented, "process.magic: not"},
      {R"({"Args":["a"],"cwd":"/"})", Code::kInvalidArgument, "spec of the exec: process: key"},
      {R"({"args":["a"],"cwd":"/","user":{"uid":-1}})", Code::kInvalidArgument, "process.user.uid"},
      {R"({"args":["a"],"cwd":"/","env":"A=b"})", Code::kInvalidArgument, "process.env"},
  };
  for (const Case& c : cases) {
    const auto refused = exec_process(c.json, false);
    CAPTURE(c.json);
    REQUIRE_FALSE(refused.has_value());
    CHECK(refused.error().code == c.code);
    CAPTURE(refused.error().message);
    CHECK(refused.error().message.starts_with(c.begins));
  }
}

TEST_CASE("D6 oci process: a text that is nested deeper than any process is an error") {
  const auto nested = [](int depth) {
    std::string text = R"({"args":["a"],"cwd":"/","user":)";
    for (int i = 0; i < depth; ++i) text += R"({"x":)";
    text += "1";
    return text + std::string(static_cast<std::size_t>(depth), '}') + "}";
  };
  // Beyond 32 levels a parse without a limit of its own throws; beyond 64 it is refused.
  for (int depth = 1; depth < 90; ++depth) {
    if (depth > 55 && depth < 65) continue;
    CAPTURE(depth);
    const auto process = exec_process(nested(depth), false);
    const auto parsed = parse_process(nested(depth));
    CHECK(process.has_value() == (depth < 60));
    CHECK(parsed.has_value() == (depth < 60));
    const auto like = process_like(R"({"process":)" + nested(depth) + "}", {{"b"}, {}, "", false});
    CHECK(like.has_value() == (depth < 60));
  }
}

TEST_CASE("oci process: another command in a container takes over all but what it names") {
  const std::string config =
      R"({"ociVersion":"1.2.0","process":{"user":{"uid":5,"gid":6},"args":["init"],"env":["A=b"],)"
      R"("cwd":"/srv","consoleSize":{"height":1,"width":2},"rlimits":[]},"linux":{}})";
  const auto same = process_like(config, {{"ls", "-l"}, {}, "", false});
  REQUIRE(same);
  CHECK(exec_process(*same, false));
  CHECK(same->find("consoleSize") == std::string::npos);
  CHECK(same->find(R"("args":["ls","-l"])") != std::string::npos);
  CHECK(same->find(R"("user":{"uid":5,"gid":6})") != std::string::npos);
  CHECK(same->find(R"("cwd":"/srv")") != std::string::npos);
  CHECK(same->find(R"("rlimits":[])") != std::string::npos);
  const auto other = process_like(config, {{"sh"}, {"B=c"}, "/tmp", true});
  REQUIRE(other);
  CHECK(other->find(R"("env":["A=b","B=c"])") != std::string::npos);
  CHECK(other->find(R"("cwd":"/tmp")") != std::string::npos);
  CHECK(other->find(R"("terminal":true)") != std::string::npos);
  CHECK_FALSE(process_like("{}", {{"sh"}, {}, "", false}));
  CHECK_FALSE(process_like("nonsense", {{"sh"}, {}, "", false}));
}

}  // namespace kuasar::oci
