#include <sys/stat.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <cstdlib>
#include <filesystem>

#include "base/files.h"
#include "daemon/daemon_config.h"
#include "daemon/toml_reader.h"
#include "runc_config.h"

namespace kuasar::daemon {
namespace {

// A directory for configuration files that ends with the test.
class ConfigDir {
 public:
  ConfigDir() {
    char name[] = "/tmp/kuasar-config-XXXXXX";
    REQUIRE(::mkdtemp(name) != nullptr);
    dir_ = name;
  }
  ConfigDir(const ConfigDir&) = delete;
  ConfigDir& operator=(const ConfigDir&) = delete;
  ~ConfigDir() { std::filesystem::remove_all(dir_); }

  std::filesystem::path main() const { return dir_ / "runc.toml"; }
  void write(const std::string& name, const std::string& text) const {
    std::filesystem::create_directories((dir_ / name).parent_path());
    REQUIRE(write_file(dir_ / name, text));
  }
  Result<runc::RuncConfig> load(Args args = {}) const {
    args.config = main().native();
    runc::RuncConfig config;
    CHECK_OK(load_config(runc::runc_defaults(), args, runc::runc_config_table(config)));
    return config;
  }
  std::string refused(const std::string& text) const {
    write("runc.toml", text);
    Result<runc::RuncConfig> config = load();
    REQUIRE_FALSE(config);
    CHECK(config.error().code == Code::kInvalidArgument);
    std::string message = config.error().message;
    const std::string dir = dir_.native() + "/";
    if (message.rfind(dir, 0) == 0) message.erase(0, dir.size());
    return message;
  }

 private:
  std::filesystem::path dir_;
};

}  // namespace

TEST_CASE("config: metrics are served on the loopback or a socket file, nowhere else") {
  ConfigDir dir;
  for (const char* good : {"off", "/run/m.sock", "127.0.0.1:9100", "[::1]:9100"}) {
    dir.write("runc.toml", fmt::format("metrics = \"{}\"\n", good));
    const auto config = dir.load();
    REQUIRE(config);
    CHECK(config->daemon.metrics == good);
  }
  CHECK(dir.refused("metrics = \"0.0.0.0:9100\"\n") ==
        "runc.toml:1: metrics: must be on the loopback, 127.0.0.1 or [::1], for anybody could read "
        "it "
        "on \"0.0.0.0\"; let something that knows its users pass it on");
  for (const char* wrong : {"", "on", "127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536",
                            "127.0.0.1:1x", "::1:9100", "m.sock", "[::]:9100", "localhost:9100"}) {
    INFO(wrong);
    CHECK(dir.refused(fmt::format("metrics = \"{}\"\n", wrong))
              .starts_with("runc.toml:1: metrics: must be "));
  }
  CHECK(dir.refused("metrics = 9100\n") == "runc.toml:1: metrics: must be a text, not 9100");
}

TEST_CASE("toml: entries come flat, by line, with their place") {
  const auto entries = parse_toml(
      "# a comment\n"
      "listen = \"/x\"   # trailing\n"
      "\n"
      "[a]\n"
      "flag = true\n"
      "n = -5\n"
      "[a.b]\n"
      "\"odd key\" = 'literal \\'\n",
      "f.toml");
  REQUIRE(entries);
  REQUIRE(entries->size() == 4);
  CHECK((*entries)[0].path == std::vector<std::string>{"listen"});
  CHECK((*entries)[0].value == ConfigValue("/x"));
  CHECK((*entries)[0].file == "f.toml");
  CHECK((*entries)[0].line == 2);
  CHECK((*entries)[1].path == std::vector<std::string>{"a", "flag"});
  CHECK((*entries)[1].value == ConfigValue(true));
  CHECK((*entries)[2].value == ConfigValue(std::int64_t{-5}));
  CHECK((*entries)[3].path == std::vector<std::string>{"a", "b", "odd key"});
  CHECK((*entries)[3].value == ConfigValue("literal \\"));
  CHECK((*entries)[3].line == 8);
}

TEST_CASE("toml: empty texts are fine, other types are named, bad syntax has a place") {
  CHECK(parse_toml("", "f")->empty());
  CHECK(parse_toml("# nothing", "f")->empty());
  const auto others = parse_toml("a = 1.5\nb = [1]\nc = 2020-01-01\n[d]\n", "f");
  REQUIRE(others);
  REQUIRE(others->size() == 4);
  const char* words[] = {"a float", "an array", "a date or time", "an empty table"};
  for (std::size_t i = 0; i < 4; ++i) {
    CHECK(std::get<OtherToml>((*others)[i].value).type == words[i]);
    CHECK((*others)[i].line == i + 1);
  }
  for (const std::string text : {"a = 1\nb = \n", "a = 1\nb = \"x\n", "a = 1\na = 2\n"}) {
    const auto bad = parse_toml(text, "f.toml");
    INFO(text);
    REQUIRE_FALSE(bad);
    INFO(bad.error().message);
    CHECK(bad.error().message.rfind("f.toml:2: ", 0) == 0);
    CHECK(bad.error().message.find('\n') == std::string::npos);
    CHECK(bad.error().message.find("toml::") == std::string::npos);
  }
}

TEST_CASE("config: defaults, then files in order, then the command line") {
  const ConfigDir dir;
  dir.write("runc.toml",
            "runtime = \"crun\"\ndir = \"/main\"\ncontainerd = \"/main.sock\"\n"
            "runtime_timeout_secs = 10\n");
  dir.write("runc.d/20-b.toml", "dir = \"/twenty\"\ndefault_sysctls = false\n");
  dir.write("runc.d/10-a.toml", "dir = \"/ten\"\ncontainerd = \"/ten.sock\"\n");
  dir.write("runc.d/.30-hidden.toml", "dir = \"/hidden\"\n");
  dir.write("runc.d/README", "not toml at all [[[");
  Args args;
  args.log_level = "debug";
  args.listen = "/cli.sock";
  const auto config = dir.load(args);
  INFO((config ? "" : config.error().message));
  REQUIRE(config);
  CHECK(config->runtime == "crun");
  CHECK(config->daemon.dir == "/twenty");
  CHECK(config->daemon.containerd == "/ten.sock");
  CHECK(config->daemon.listen == "/cli.sock");
  CHECK(config->daemon.log_level == log::Level::kDebug);
  CHECK(config->runtime_timeout == std::chrono::seconds(10));
  CHECK_FALSE(config->default_sysctls);
  CHECK(config->gate_width >= 2);
}

TEST_CASE("config: the main file may be missing unless it was named") {
  const ConfigDir dir;
  dir.write("runc.d/10-y.toml", "runtime = \"youki\"\n");
  const auto entries = read_config_files(dir.main(), false);
  REQUIRE(entries);
  CHECK(entries->size() == 1);
  const auto named = dir.load();
  REQUIRE_FALSE(named);
  CHECK(named.error().code == Code::kNotFound);
  CHECK(named.error().message.find("runc.toml") != std::string::npos);
  CHECK(read_config_files("/nonexistent/x.toml", false)->empty());
}

TEST_CASE("config: a drop-in without a number is refused, not passed over") {
  for (const std::string name : {"ours.toml", "1-a.toml", "10.toml", "10a.toml", "a10-b.toml"}) {
    CAPTURE(name);
    const ConfigDir dir;
    dir.write("runc.d/" + name, "runtime = \"youki\"\n");
    const auto entries = read_config_files(dir.main(), false);
    REQUIRE_FALSE(entries);
    CHECK(entries.error().code == Code::kInvalidArgument);
    CHECK(entries.error().message.find("/runc.d/" + name + ": ") != std::string::npos);
    CHECK(entries.error().message.find("NN-NAME.toml") != std::string::npos);
  }
  // What does not look like one is somebody's note.
  const ConfigDir dir;
  dir.write("runc.d/README", "not toml at all [[[");
  dir.write("runc.d/ours.toml.disabled", "not toml at all [[[");
  dir.write("runc.d/10-a.toml~", "not toml at all [[[");
  CHECK(read_config_files(dir.main(), false)->empty());
}

TEST_CASE("config: unknown keys are refused with their place and the nearest key") {
  const ConfigDir dir;
  CHECK(dir.refused("\nruntme = \"crun\"\n") ==
        "runc.toml:2: unknown key \"runtme\"; did you mean \"runtime\"?");
  CHECK(dir.refused("[runc]\nruntime = \"crun\"\n") ==
        "runc.toml:2: unknown key \"runtime\" in [runc]; did you mean \"runtime\"?");
  CHECK(dir.refused("[sandbox.deep]\nfrobnicate = 1\n") ==
        "runc.toml:2: unknown key \"frobnicate\" in [sandbox.deep]");
  CHECK(dir.refused("[foo]\nbar = 1\n") == "runc.toml:2: unknown key \"bar\" in [foo]");
  CHECK(dir.refused("dir = \"/d\"\n[runtime_section]\n")
            .find("runc.toml:2: unknown key \"runtime_section\"") == 0);
  CHECK(dir.refused("[[listen]]\n").find("runc.toml:1: listen: must be an absolute path") == 0);
}

TEST_CASE("config: wrong types and values out of range are refused with their place") {
  const ConfigDir dir;
  CHECK(dir.refused("dir = \"relative\"\n") ==
        "runc.toml:1: dir: must be an absolute path, not \"relative\"");
  CHECK(dir.refused("runtime = \"\"\n") ==
        "runc.toml:1: runtime: must be a text that is not empty, not \"\"");
  CHECK(dir.refused("runtime = \"a\\u0000b\"\n").find("runc.toml:1: runtime: ") == 0);
  CHECK(dir.refused("default_sysctls = 1\n") ==
        "runc.toml:1: default_sysctls: must be true or false, not 1");
  CHECK(dir.refused("default_sysctls = \"true\"\n") ==
        "runc.toml:1: default_sysctls: must be true or false, not \"true\"");
  CHECK(dir.refused("gate_width = 0\n") ==
        "runc.toml:1: gate_width: must be an integer from 1 to 1024, not 0");
  CHECK(dir.refused("gate_width = 2.0\n") ==
        "runc.toml:1: gate_width: must be an integer from 1 to 1024, not a float");
  CHECK(dir.refused("runtime_timeout_secs = 3601\n") ==
        "runc.toml:1: runtime_timeout_secs: must be a whole number of seconds from 1 to 3600, "
        "not 3601");
  CHECK(dir.refused("log_level = \"loud\"\n") ==
        "runc.toml:1: log_level: must be error, warning, info, debug or trace, not \"loud\"");
  CHECK(dir.refused("dir = [\"/a\"]\n") ==
        "runc.toml:1: dir: must be an absolute path, not an array");
  CHECK(dir.refused("gate_width = 99999999999999999999\n").find("runc.toml") == 0);
}

TEST_CASE("config: a bad value on the command line names its flag") {
  const ConfigDir dir;
  dir.write("runc.toml", "");
  Args args;
  args.log_level = "loud";
  const auto config = dir.load(args);
  REQUIRE_FALSE(config);
  CHECK(config.error().message ==
        "--log-level: must be error, warning, info, debug or trace, not \"loud\"");
  Args relative;
  relative.dir = "state";
  CHECK(dir.load(relative).error().message == "--dir: must be an absolute path, not \"state\"");
}

TEST_CASE("config: the dump reads back to the same configuration") {
  runc::RuncConfig config;
  config.runtime = "a \"quoted\" \\ \x01 name";
  config.gate_width = 7;
  config.default_sysctls = false;
  config.daemon.log_level = log::Level::kTrace;
  const std::string dump = runc::runc_config_table(config).dump();
  const auto entries = parse_toml(dump, "dump");
  INFO(dump);
  REQUIRE(entries);
  runc::RuncConfig again;
  REQUIRE(runc::runc_config_table(again).apply(*entries));
  CHECK(again.runtime == config.runtime);
  CHECK(again.gate_width == 7);
  CHECK_FALSE(again.default_sysctls);
  CHECK(again.daemon.log_level == log::Level::kTrace);
  CHECK(again.daemon.dir == "/run/kuasar-runc");
  CHECK(runc::runc_config_table(again).dump() == dump);
}

TEST_CASE("config: sections are dumped after the top level") {
  ConfigTable table;
  std::string a = "x";
  bool b = true;
  std::string c = "z";
  table.add_string("pod.name", &a);
  table.add_bool("top", &b);
  table.add_string("pod.other", &c);
  CHECK(table.dump() == "top = true\n\n[pod]\nname = \"x\"\nother = \"z\"\n");
  const auto entries = parse_toml("[pod]\nnaem = \"q\"\n", "f");
  CHECK(table.apply(*entries).error().message ==
        "f:2: unknown key \"naem\" in [pod]; did you mean \"name\"?");
}

}  // namespace kuasar::daemon
