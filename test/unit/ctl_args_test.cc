#include <catch2/catch_test_macros.hpp>
#include <sstream>

#include "ctl/args.h"

namespace kuasar::ctl {
namespace {

Args parsed(const std::vector<std::string>& arguments) {
  Result<Args> args = parse_args(arguments);
  INFO((args ? std::string() : args.error().message));
  REQUIRE(args);
  return *args;
}

std::string refused(const std::vector<std::string>& arguments) {
  const Result<Args> args = parse_args(arguments);
  REQUIRE_FALSE(args);
  CHECK(args.error().code == Code::kInvalidArgument);
  return args.error().message;
}

bool says(const std::string& text, const std::string& part) {
  INFO(text);
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("ctl args: every command") {
  CHECK(parsed({"list"}).command == Command::kList);
  CHECK(parsed({"stats"}).command == Command::kStats);
  CHECK(parsed({"health"}).command == Command::kHealth);
  CHECK(parsed({"doctor"}).command == Command::kDoctor);
  const Args inspect = parsed({"inspect", "web"});
  CHECK(inspect.command == Command::kInspect);
  CHECK(inspect.object == "web");
  const Args check = parsed({"config", "check", "/a.toml", "/b.toml"});
  CHECK(check.command == Command::kConfigCheck);
  CHECK(check.files == std::vector<std::string>{"/a.toml", "/b.toml"});
  CHECK(parsed({"help"}).command == Command::kHelp);
  CHECK(parsed({"version"}).command == Command::kVersion);
}

TEST_CASE("ctl args: flags before and after the command, spaced, joined, by letter") {
  for (const std::vector<std::string>& words :
       {std::vector<std::string>{"-o", "json", "--socket", "/s", "-d", "/d", "list"},
        {"list", "--output=json", "--socket=/s", "--dir=/d"},
        {"--output", "json", "list", "--socket", "/s", "--dir", "/d"}}) {
    const Args args = parsed(words);
    CHECK(args.json);
    CHECK(args.sockets == std::vector<std::string>{"/s", "/d/ctl.sock"});
  }
  CHECK_FALSE(parsed({"list", "-o", "json", "-o", "table"}).json);
  CHECK(parsed({"list", "-q"}).quiet);
}

TEST_CASE("ctl args: exec takes everything behind -- as it is") {
  const Args args = parsed(
      {"exec", "-it", "-e", "A=b=c", "--env=X=", "-w", "/tmp", "c1", "--", "ls", "-o", "--"});
  CHECK(args.command == Command::kExec);
  CHECK(args.object == "c1");
  CHECK(args.input);
  CHECK(args.terminal);
  CHECK(args.env == std::vector<std::string>{"A=b=c", "X="});
  CHECK(args.cwd == "/tmp");
  CHECK(args.argv == std::vector<std::string>{"ls", "-o", "--"});
  CHECK_FALSE(args.json);
  CHECK(says(refused({"exec", "c1"}), "no command to run"));
  CHECK(says(refused({"exec", "c1", "ls", "--", "x"}), "one container"));
  CHECK(says(refused({"exec", "--", "ls"}), "one container"));
  CHECK(says(refused({"exec", "c1", "-e", "A", "--", "ls"}), "NAME=VALUE"));
  CHECK(says(refused({"list", "--", "x"}), "belongs to exec"));
}

TEST_CASE("ctl args: help wins over everything, then the version") {
  CHECK(parsed({"--help", "list", "--version"}).command == Command::kHelp);
  CHECK(parsed({"-v", "nonsense"}).command == Command::kVersion);
  CHECK(parsed({"exec", "-h"}).command == Command::kHelp);
}

TEST_CASE("ctl args: errors name the nearest word") {
  CHECK(says(refused({"lst"}), "did you mean list?"));
  CHECK(says(refused({"list", "--outptu", "json"}), "did you mean --output?"));
  CHECK(says(refused({"frobnicate"}), "unknown command \"frobnicate\" ("));
  CHECK(says(refused({}), "no command"));
  CHECK(says(refused({"list", "extra"}), "unexpected argument \"extra\""));
  CHECK(says(refused({"inspect"}), "name a pod"));
  CHECK(says(refused({"inspect", "a", "b"}), "2 arguments"));
  CHECK(says(refused({"config"}), "config check"));
  CHECK(says(refused({"list", "--output"}), "needs a value"));
  CHECK(says(refused({"list", "--output="}), "is empty"));
  CHECK(says(refused({"list", "-o", "yaml"}), "json or table"));
  CHECK(says(refused({"list", "--quiet=1"}), "takes no value"));
  CHECK(says(refused({"list", "-x"}), "unknown flag -x"));
}

TEST_CASE("ctl args: the help names every command and fits 100 columns") {
  std::istringstream lines(help_text());
  std::string line;
  while (std::getline(lines, line)) CHECK(line.size() <= 100);
  for (const char* word : {"list", "inspect POD", "exec CONTAINER", "stats", "health", "doctor",
                           "config check", "--output", "--socket", "--dir", "--tty"}) {
    CHECK(says(help_text(), word));
  }
  CHECK(version_text().starts_with("kuasar-ctl "));
}

}  // namespace kuasar::ctl
