#include "daemon/args.h"

#include <catch2/catch_test_macros.hpp>
#include <sstream>

#include "base/words.h"

namespace kuasar::daemon {
namespace {

const DaemonDefaults kDefaults{"runc-sandboxer", "runc", "/run/runc-sandboxer.sock",
                               "/run/kuasar-runc", "/etc/kuasar/runc.toml"};

Args parsed(const std::vector<std::string>& arguments) {
  Result<Args> args = parse_args(kDefaults, arguments);
  INFO((args ? std::string() : args.error().message));
  REQUIRE(args);
  return *args;
}

std::string refused(const std::vector<std::string>& arguments) {
  Result<Args> args = parse_args(kDefaults, arguments);
  REQUIRE_FALSE(args);
  CHECK(args.error().code == Code::kInvalidArgument);
  return args.error().message;
}

}  // namespace

TEST_CASE("args: an empty command line leaves everything to files and defaults") {
  const Args args = parsed({});
  CHECK(args.action == Args::Action::kRun);
  CHECK_FALSE(args.listen);
  CHECK_FALSE(args.dir);
  CHECK_FALSE(args.config);
  CHECK_FALSE(args.log_level);
  CHECK_FALSE(args.containerd);
}

TEST_CASE("args: every flag, with a space, with an equals sign and by its letter") {
  const Args spaced = parsed({"--listen", "/l", "--dir", "/d", "--config", "/c", "--log-level",
                              "debug", "--containerd", "/s"});
  const Args joined =
      parsed({"--listen=/l", "--dir=/d", "--config=/c", "--log-level=debug", "--containerd=/s"});
  const Args letters =
      parsed({"-l", "/l", "-d", "/d", "-c", "/c", "--log-level", "debug", "--containerd", "/s"});
  for (const Args& args : {spaced, joined, letters}) {
    CHECK(args.listen == "/l");
    CHECK(args.dir == "/d");
    CHECK(args.config == "/c");
    CHECK(args.log_level == "debug");
    CHECK(args.containerd == "/s");
  }
}

TEST_CASE("args: values may hold equals signs and look like flags; the last one counts") {
  CHECK(parsed({"--dir=/a=b"}).dir == "/a=b");
  CHECK(parsed({"--dir", "--odd"}).dir == "--odd");
  CHECK(parsed({"--dir", "/a", "-d", "/b"}).dir == "/b");
}

TEST_CASE("args: actions") {
  CHECK(parsed({"--help"}).action == Args::Action::kHelp);
  CHECK(parsed({"-h"}).action == Args::Action::kHelp);
  CHECK(parsed({"--version"}).action == Args::Action::kVersion);
  CHECK(parsed({"-v"}).action == Args::Action::kVersion);
  CHECK(parsed({"--dump-config", "--dir", "/d"}).action == Args::Action::kDumpConfig);
  CHECK(parsed({"--dump-config", "--version", "--help"}).action == Args::Action::kHelp);
  CHECK(parsed({"--version", "--dump-config"}).action == Args::Action::kVersion);
}

TEST_CASE("args: an unknown flag is refused with the nearest one") {
  CHECK(refused({"--lisen", "/l"}) ==
        "unknown flag --lisen; did you mean --listen? (\"runc-sandboxer --help\" lists the flags)");
  CHECK(refused({"--loglevel=debug"}).find("did you mean --log-level?") != std::string::npos);
  CHECK(refused({"-listen", "/l"}).find("did you mean --listen?") != std::string::npos);
  CHECK(refused({"--frobnicate"}).find("did you mean") == std::string::npos);
  CHECK(refused({"--" + std::string(100000, 'x')}).find("did you mean") == std::string::npos);
  CHECK(refused({"-x"}).find("unknown flag -x") == 0);
  CHECK(refused({"--"}).find("unknown flag --") == 0);
  CHECK(refused({"-"}).find("unknown flag -") == 0);
}

TEST_CASE("args: missing, empty and superfluous values") {
  CHECK(refused({"--dir"}) == "--dir needs a value");
  CHECK(refused({"-d"}) == "--dir needs a value");
  CHECK(refused({"--dir="}) == "the value of --dir is empty");
  CHECK(refused({"--dir", ""}) == "the value of --dir is empty");
  CHECK(refused({"--help=yes"}) == "--help takes no value (\"yes\" was given)");
  CHECK(refused({"start"}) == "unexpected argument \"start\": runc-sandboxer takes flags only");
  CHECK(refused({""}).find("unexpected argument") == 0);
}

TEST_CASE("args: the help fits 100 columns and names flags and defaults") {
  const std::string help = help_text(kDefaults);
  std::istringstream lines(help);
  for (std::string line; std::getline(lines, line);) {
    INFO(line);
    CHECK(line.size() <= 100);
  }
  for (const char* word : {"--listen", "--dir", "--config", "--log-level", "--containerd",
                           "--keeper", "--dump-config", "--help", "--version",
                           "/run/runc-sandboxer.sock", "/run/kuasar-runc", "/etc/kuasar/runc.toml",
                           "/etc/kuasar/runc.d/NN-*.toml", "/run/containerd/containerd.sock"}) {
    INFO(word);
    CHECK(help.find(word) != std::string::npos);
  }
  CHECK(version_text(kDefaults).find("runc-sandboxer ") == 0);
}

TEST_CASE("words: edit distance and the nearest word") {
  CHECK(edit_distance("", "") == 0);
  CHECK(edit_distance("", "abc") == 3);
  CHECK(edit_distance("kitten", "sitting") == 3);
  CHECK(edit_distance("dir", "dir") == 0);
  CHECK(edit_distance("dri", "dir") == 1);
  CHECK(edit_distance("abcd", "badc") == 2);
  CHECK(nearest_word("dri", {"listen", "dir"}) == "dir");
  CHECK(nearest_word("lisen", {"listen", "dir"}) == "listen");
  CHECK(nearest_word("log_lvel", {"listen", "log_level"}) == "log_level");
  // Two of three letters are another word, not a slip.
  CHECK_FALSE(nearest_word("bar", {"listen", "dir"}));
  CHECK_FALSE(nearest_word("d", {"dir"}));
  CHECK_FALSE(nearest_word("zzz", {"listen", "dir"}));
  CHECK_FALSE(nearest_word("dir", {}));
}

}  // namespace kuasar::daemon
