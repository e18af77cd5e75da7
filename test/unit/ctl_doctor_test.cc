#include <sys/stat.h>

#include <boost/json/value.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <sstream>

#include "base/files.h"
#include "ctl/config_check.h"
#include "ctl/doctor.h"

namespace kuasar::ctl {
namespace {

namespace fs = std::filesystem;
using Level = Finding::Level;

/// A FAKE machine: a tree that stands for "/".
class Tree {
 public:
  Tree() {
    char name[] = "/tmp/kuasar-doctor-XXXXXX";
    REQUIRE(::mkdtemp(name) != nullptr);
    root_ = name;
  }
  Tree(const Tree&) = delete;
  Tree& operator=(const Tree&) = delete;
  ~Tree() { fs::remove_all(root_); }

  Tree& file(const std::string& path, const std::string& text, mode_t mode = 0644) {
    fs::create_directories((root_ / path).parent_path());
    REQUIRE(write_file(root_ / path, text, mode));
    REQUIRE(::chmod((root_ / path).c_str(), mode) == 0);
    return *this;
  }
  Tree& program(const std::string& path) { return file(path, "", 0755); }
  Tree& link(const std::string& path, const std::string& target) {
    fs::create_directories((root_ / path).parent_path());
    fs::create_symlink(target, root_ / path);
    return *this;
  }
  Probe probe(std::map<std::string, std::string> answers = {}) const {
    return {root_, [answers](const std::vector<std::string>& argv) -> Result<std::string> {
              const auto answer = answers.find(argv[0]);
              if (answer == answers.end()) return fail(Code::kUnknown, "exec format error");
              return answer->second;
            }};
  }

 private:
  fs::path root_;
};

bool says(const std::string& text, const std::string& part) {
  INFO(text);
  return text.find(part) != std::string::npos;
}

Finding only(const std::vector<Finding>& findings) {
  REQUIRE(findings.size() == 1);
  return findings[0];
}

// Every finding but a good one tells what to do.
void check_remedy(const Finding& finding) {
  INFO(finding.check << ": " << finding.words);
  CHECK(finding.remedy.empty() == (finding.level == Level::kOk));
}

constexpr const char* kV1Mounts =
    "30 25 0:26 / /run rw,nosuid - tmpfs tmpfs rw\n"
    "31 25 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
constexpr const char* kV2Mount = "32 25 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";

constexpr const char* kGoodConfig = R"(version = 3
[proxy_plugins.kuasar-runc]
  type = "sandbox"
  address = "/run/runc-sandboxer.sock"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.kuasar-runc]
  runtime_type = "io.containerd.runc.v2"
  sandboxer = "kuasar-runc"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  sandboxer = "podsandbox"
)";

ContainerdConfig config(const std::string& text) {
  const Result<ContainerdConfig> parsed = parse_containerd_config(text);
  INFO((parsed ? std::string() : parsed.error().message));
  REQUIRE(parsed);
  return *parsed;
}

std::string replaced(std::string text, const std::string& old, const std::string& fresh) {
  const std::size_t at = text.find(old);
  REQUIRE(at != std::string::npos);
  return text.replace(at, old.size(), fresh);
}

}  // namespace

TEST_CASE("doctor: root") {
  CHECK(check_root(0).level == Level::kOk);
  CHECK(check_root(1000).level == Level::kFail);
  check_remedy(check_root(1000));
}

TEST_CASE("doctor: kernels") {
  CHECK(only(check_kernel("6.15.0-1-amd64")).level == Level::kOk);
  CHECK(only(check_kernel("7.0")).level == Level::kOk);
  CHECK(says(only(check_kernel("6.1.0-18-amd64")).words, "PIDFD_INFO_EXIT"));
  CHECK(check_kernel("5.15.3").size() == 2);
  CHECK(check_kernel("5.10.0").size() == 3);
  CHECK(only(check_kernel("5.4.0")).level == Level::kFail);
  CHECK(only(check_kernel("odd")).level == Level::kWarn);
  for (const char* release : {"7.0", "6.1.0", "5.10.0", "4.19", "odd"}) {
    for (const Finding& finding : check_kernel(release)) check_remedy(finding);
  }
}

TEST_CASE("doctor: cgroups of each kind") {
  const auto cgroups = [](const std::string& mounts, const std::string& controllers) {
    Tree tree;
    tree.file("proc/self/mountinfo", mounts).file("sys/fs/cgroup/cgroup.controllers", controllers);
    const Finding finding = check_cgroups(tree.probe());
    check_remedy(finding);
    return finding;
  };
  CHECK(cgroups(kV1Mounts, "").words == "version 1");
  CHECK(cgroups(kV2Mount, "cpuset cpu io memory pids\n").words == "version 2");
  CHECK(cgroups(std::string(kV1Mounts) + kV2Mount, "").words.starts_with("hybrid"));
  CHECK(says(cgroups(kV2Mount, "cpu pids\n").words, "without the controller memory"));
  CHECK(cgroups("", "").level == Level::kFail);
}

TEST_CASE("doctor: /run") {
  const auto run = [](const std::string& mounts) {
    Tree tree;
    tree.file("proc/self/mountinfo", mounts);
    const Finding finding = check_run_dir(tree.probe());
    check_remedy(finding);
    return finding;
  };
  CHECK(run(kV1Mounts).level == Level::kOk);
  CHECK(says(run(kV2Mount).words, "root file system"));
  CHECK(says(run("30 25 0:26 / /run rw shared:5 - ext4 /dev/sda rw\n").words, "ext4"));
}

TEST_CASE("doctor: whether oom_score_adj may be lowered") {
  Tree full;
  full.file("proc/self/status", "Name:\tx\nCapEff:\t000001ffffffffff\n");
  CHECK(may_lower_oom_score(full.probe()));
  CHECK(check_oom_score(full.probe()).level == Level::kOk);
  Tree less;
  less.file("proc/self/status", "CapEff:\t000001fffeffffff\n");
  CHECK_FALSE(may_lower_oom_score(less.probe()));
  CHECK(check_oom_score(less.probe()).level == Level::kWarn);
  CHECK(check_oom_setting(config(kGoodConfig), false).empty());
  CHECK(check_oom_setting(config("version = 3\n"), true).empty());
  CHECK(only(check_oom_setting(config("version = 3\n"), false)).level == Level::kFail);
}

TEST_CASE("doctor: OCI runtimes and the shim are found in PATH") {
  Tree tree;
  tree.program("usr/sbin/runc").program("opt/crun").file("usr/bin/youki", "", 0644);
  tree.program("usr/bin/containerd-shim-runc-v2");
  const auto found =
      check_runtimes(tree.probe({{"/usr/sbin/runc", "runc version 1.1.5\ncommit: x\n"}}),
                     "/usr/bin:/usr/sbin::relative:/opt");
  REQUIRE(found.size() == 2);
  CHECK(found[0].level == Level::kOk);
  CHECK(found[0].words == "/usr/sbin/runc: runc version 1.1.5");
  CHECK(found[1].level == Level::kFail);
  CHECK(says(found[1].words, "/opt/crun does not run: exec format error"));
  CHECK(only(check_runtimes(tree.probe(), "/nowhere")).level == Level::kFail);
  CHECK(check_shim(tree.probe(), "/usr/sbin:/usr/bin").words == "/usr/bin/containerd-shim-runc-v2");
  CHECK(check_shim(tree.probe(), "/usr/sbin").level == Level::kFail);
}

TEST_CASE("doctor: containerd's version") {
  const auto level = [](const std::string& output) {
    const Finding finding = check_containerd_version(output);
    check_remedy(finding);
    return finding.level;
  };
  CHECK(level("containerd github.com/containerd/containerd/v2 2.1.9 abc\n") == Level::kOk);
  CHECK(level("containerd github.com/containerd/containerd/v2 v2.2.0-rc.1 abc\n") == Level::kOk);
  CHECK(level("containerd containerd.io 1.7.24 88bf19b\n") == Level::kFail);
  CHECK(level("containerd github.com/containerd/containerd/v2 2.0.5 abc\n") == Level::kFail);
  CHECK(level("nonsense\n") == Level::kWarn);
  CHECK(check_containerd_version("containerd x v2.1.9 r").words == "2.1.9");
}

TEST_CASE("doctor: the drop-in, with each mistake that can be made in it") {
  const std::string socket = "/run/runc-sandboxer.sock";
  const auto good = check_handlers(config(kGoodConfig), socket);
  REQUIRE(good.size() == 2);
  CHECK(good[0].level == Level::kOk);
  CHECK(good[1].level == Level::kOk);
  CHECK(good[1].check == "handler kuasar-runc");

  const auto last = [&](const std::string& text) {
    const auto findings = check_handlers(config(text), socket);
    REQUIRE_FALSE(findings.empty());
    check_remedy(findings.back());
    CHECK(findings.back().level == Level::kFail);
    return findings.back().words;
  };
  const std::string text = kGoodConfig;
  CHECK(says(last("version = 3\n"), "knows none at /run/runc-sandboxer.sock"));
  CHECK(says(last(replaced(text, "runc-sandboxer.sock", "other.sock")), "knows none"));
  CHECK(says(last(replaced(text, "\"sandbox\"", "\"snapshot\"")), "of type \"snapshot\""));
  CHECK(says(last(replaced(text, "sandboxer = \"kuasar-runc\"", "sandboxer = \"x\"")),
             "no runtime has sandboxer = \"kuasar-runc\""));
  // T5
  const std::string other = replaced(text, "io.containerd.runc.v2", "io.containerd.other.v1");
  CHECK(says(last(other), "runtime_type is \"io.containerd.other.v1\""));
  const std::string options = replaced(other, "  sandboxer = \"kuasar-runc\"\n",
                                       "  sandboxer = \"kuasar-runc\"\n  options = { A = true }\n");
  CHECK(says(last(options), "table of options"));
  CHECK(says(last(replaced(text, "  sandboxer = \"kuasar-runc\"\n",
                           "  sandboxer = \"kuasar-runc\"\n  io_type = \"streaming\"\n")),
             "io_type is \"streaming\""));
  // Version 2 has another name for the plugin.
  const std::string old = R"(version = 2
[proxy_plugins.k]
  type = "sandbox"
  address = "unix:///run/runc-sandboxer.sock"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.k]
  runtime_type = "io.containerd.runc.v2"
  sandboxer = "k"
)";
  CHECK(check_handlers(config(old), socket).back().level == Level::kOk);
  CHECK_FALSE(parse_containerd_config("a = = b"));
}

TEST_CASE("doctor: how a containerd was started is read from its /proc") {
  Tree tree;
  tree.link("proc/7/exe", "/opt/bin/containerd");
  tree.file("proc/7/cmdline", std::string("containerd\0--config\0/c.toml\0", 28));
  tree.file("proc/7/environ", std::string("A=b\0PATH=/opt/bin:/bin\0", 23));
  tree.program("usr/bin/containerd");
  const ContainerdProcess found = inspect_containerd(tree.probe(), 7, "/usr/bin");
  CHECK(found.program == "/opt/bin/containerd");
  CHECK(found.config == "/c.toml");
  CHECK(found.path == "/opt/bin:/bin");
  tree.file("proc/8/cmdline", std::string("containerd\0-c=/d.toml\0", 22));
  CHECK(inspect_containerd(tree.probe(), 8, "/usr/bin").config == "/d.toml");
  const ContainerdProcess none = inspect_containerd(tree.probe(), 0, "/usr/bin");
  CHECK(none.program == "/usr/bin/containerd");
  CHECK(none.config == "/etc/containerd/config.toml");
}

TEST_CASE("doctor: mount namespaces") {
  Tree tree;
  tree.link("proc/1/ns/mnt", "mnt:[1]").link("proc/2/ns/mnt", "mnt:[1]");
  tree.link("proc/3/ns/mnt", "mnt:[2]");
  const Probe probe = tree.probe();
  CHECK(check_mount_namespaces(probe, {{"a", 1}, {"b", 2}, {"gone", 9}, {"none", 0}}).words ==
        "the same for a, b");
  const Finding differs = check_mount_namespaces(probe, {{"a", 1}, {"b", 2}, {"c", 3}});
  CHECK(differs.level == Level::kFail);
  CHECK(says(differs.words, "c (pid 3) and a"));
  check_remedy(differs);
  CHECK(check_mount_namespaces(probe, {{"gone", 9}}).level == Level::kWarn);
}

TEST_CASE("doctor: systemd units") {
  Tree tree;
  CHECK(check_units(tree.probe(), {"runc"}).empty());
  fs::create_directories(tree.probe().at("/run/systemd/system"));
  CHECK(says(only(check_units(tree.probe(), {"runc"})).words, "not installed"));
  const std::string unit = "usr/lib/systemd/system/runc-sandboxer.service";
  tree.file(unit, "[Unit]\nBefore=x.service containerd.service\n");
  CHECK(says(only(check_units(tree.probe(), {"runc"})).words, "does not start at boot"));
  tree.link("etc/systemd/system/multi-user.target.wants/runc-sandboxer.service", "/x");
  CHECK(only(check_units(tree.probe(), {"runc"})).level == Level::kOk);
  tree.file(unit, "[Unit]\nAfter=containerd.service\n[Service]\nPrivateTmp=yes\n");
  const auto broken = check_units(tree.probe(), {"runc"});
  REQUIRE(broken.size() == 2);
  CHECK(says(broken[0].words, "does not start before containerd"));
  CHECK(says(broken[1].words, "PrivateTmp="));
  for (const Finding& finding : broken) check_remedy(finding);
}

TEST_CASE("doctor: the report fits 100 columns, and as JSON") {
  const std::vector<Finding> findings{
      {Level::kOk, "kernel", "6.18", ""},
      {Level::kFail, "handler", std::string(60, 'x') + " " + std::string(60, 'y'), "do this"}};
  const std::string text = report_text(findings);
  CHECK(text.starts_with("OK    kernel: 6.18\nFAIL  handler: xxx"));
  CHECK(says(text, "\n      -> do this\n"));
  CHECK(text.ends_with("1 ok, 0 warnings, 1 failures\n"));
  std::istringstream lines(text);
  std::string line;
  while (std::getline(lines, line)) CHECK(line.size() <= 100);
  CHECK(any_failed(findings));
  CHECK_FALSE(any_failed({findings[0]}));
  CHECK(report_json(findings).at("findings").at(1).at("level") == "fail");
}

TEST_CASE("config check: each file goes to its sandboxer, and its words come back") {
  Tree tree;
  tree.program("usr/bin/runc-sandboxer")
      .program("opt/wasm-sandboxer")
      .program("opt/runc-sandboxer");
  const auto installed = find_sandboxers(tree.probe(), "/usr/bin", "/opt:/bin");
  REQUIRE(installed.size() == 2);
  CHECK(installed[0].program == "/usr/bin/runc-sandboxer");
  CHECK(installed[1].program == "/opt/wasm-sandboxer");

  std::vector<std::vector<std::string>> calls;
  const auto run = [&](const std::vector<std::string>& argv) -> Result<Ran> {
    calls.push_back(argv);
    if (argv.back() == "/bad/runc.toml") return Ran{2, "runc-sandboxer: /bad/runc.toml:3: no\n"};
    return Ran{0, "listen = \"x\"\n"};
  };
  const auto found = check_config(
      installed, {"/etc/wasm.toml", "/etc/kuasar/wasm.d/10-a.toml", "/bad/runc.toml", "/x"}, run);
  REQUIRE(found.size() == 4);
  CHECK(calls ==
        std::vector<std::vector<std::string>>{
            {"/opt/wasm-sandboxer", "--dump-config", "--config", "/etc/wasm.toml"},
            {"/opt/wasm-sandboxer", "--dump-config", "--config", "/etc/kuasar/wasm.d/10-a.toml"},
            {"/usr/bin/runc-sandboxer", "--dump-config", "--config", "/bad/runc.toml"},
            {"/usr/bin/runc-sandboxer", "--dump-config", "--config", "/x"}});
  CHECK(found[0].level == Level::kOk);
  CHECK(found[2].level == Level::kFail);
  CHECK(found[2].words == "/bad/runc.toml:3: no");
  calls.clear();
  CHECK(check_config(installed, {}, run).size() == 2);
  CHECK(calls[0] == std::vector<std::string>{"/usr/bin/runc-sandboxer", "--dump-config"});
  CHECK(only(check_config({}, {}, run)).level == Level::kFail);
}

TEST_CASE("ctl: a program is run to its end, or killed") {
  const Result<Ran> ran = run_program({"/bin/sh", "-c", "echo out; echo err >&2; exit 3"});
  REQUIRE(ran);
  CHECK(ran->code == 3);
  CHECK(ran->output == "out\nerr\n");
  CHECK_FALSE(run_program({"/no/such/program"}));
  const Result<Ran> late = run_program({"/bin/sleep", "60"}, std::chrono::milliseconds(50));
  REQUIRE_FALSE(late);
  CHECK(late.error().code == Code::kDeadlineExceeded);
  CHECK(says(output_of({"/bin/sh", "-c", "echo why; exit 1"}).error().message,
             "/bin/sh ended with 1: why"));
}

}  // namespace kuasar::ctl
