#include <sys/resource.h>

#include <catch2/catch_test_macros.hpp>
#include <string>

#include "base/files.h"
#include "container_plan.h"
#include "oci/process.h"
#include "run_mode.h"
#include "wasm_config.h"
#include "worker/plan.h"

namespace kuasar::wasm {
namespace {

oci::Spec spec_of(const std::string& text) {
  Result<oci::Spec> spec = oci::Spec::parse(text);
  INFO((spec ? "" : spec.error().message));
  REQUIRE(spec);
  return *spec;
}

// A container as containerd describes it, its namespaces rewritten.
std::string spec_with(const std::string& more) {
  return R"({"process":{"args":["/app.wasm#run","x"],"env":["A=b"],"cwd":"/srv",)"
         R"("user":{"uid":1000,"gid":1001,"additionalGids":[5,6],"umask":63},)"
         R"("rlimits":[{"type":"RLIMIT_NOFILE","soft":64,"hard":128}],"oomScoreAdj":999},)"
         R"("root":{"path":"rootfs","readonly":true},)"
         R"("mounts":[{"destination":"/proc","type":"proc","source":"proc"},)"
         R"({"destination":"/dev","type":"tmpfs","source":"tmpfs","options":["nosuid","mode=755"]},)"
         R"({"destination":"/dev/pts","type":"devpts","source":"devpts"},)"
         R"({"destination":"/sys","type":"sysfs","source":"sysfs","options":["ro"]},)"
         R"({"destination":"/data/","type":"bind","source":"/host","options":["rbind","ro"]},)"
         R"({"destination":"/deep","type":"bind","source":"/host","options":["rbind","rro"]}],)"
         R"("linux":{"cgroupsPath":"/pods/c1","resources":{"memory":{"limit":1048576}},)"
         R"("namespaces":[{"type":"pid"},{"type":"mount"},{"type":"network","path":"/n/net"},)"
         R"({"type":"ipc","path":"/n/ipc"},{"type":"user","path":"/n/user"}])" +
         more + "}}";
}

}  // namespace

TEST_CASE("wasm: a plan survives the way to the worker, and what is none is told") {
  Plan plan;
  plan.module = "/app.wasm";
  plan.function = "run";
  plan.args = {"a", "", "c d"};
  plan.env = {"A=1"};
  plan.cwd = "/";
  plan.preopens = {{"/", "/", true}};
  plan.uid = 1;
  plan.gid = 2;
  plan.groups = {3, 4};
  plan.umask = 077;
  plan.limits = {{RLIMIT_CORE, 0, ~0ULL}};
  plan.memory_pages = 7;
  plan.root = 5;
  plan.root_readonly = true;
  plan.mounts = {{6, "/data", false}};
  plan.namespaces = {7, 8};
  plan.user_namespace = 9;
  plan.cgroups = {10};
  plan.streams[1] = 11;
  plan.terminal = true;
  plan.zygote_of = "12ab";
  const std::string bytes = encode(plan);
  Plan read;
  REQUIRE(decode(bytes, read));
  CHECK(read == plan);
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    Plan cut;
    CHECK_FALSE(decode(std::string_view(bytes).substr(0, size), cut));
  }
  Plan longer;
  CHECK_FALSE(decode(bytes + "x", longer));
}

TEST_CASE("wasm: what a child says of its module") {
  const std::string digest(64, 'a');
  for (const bool native : {true, false}) {
    const Readiness read = decode_readiness(encode({digest, native}));
    CHECK(read.digest == digest);
    CHECK(read.native == native);
  }
  CHECK(encode(Readiness{}) == "");
  for (const std::string& words : {std::string(), "+" + digest.substr(1), digest, "*" + digest,
                                   "+" + digest + "a", "-" + std::string(64, 'A')}) {
    CHECK(decode_readiness(words).digest == "");
    CHECK_FALSE(decode_readiness(words).native);
  }
}

TEST_CASE("wasm: an engine and its kind of zygote in a word") {
  const RunMode standard{"wasmedge", true};
  CHECK(parse_mode("", standard) == standard);
  CHECK(parse_mode("wasmtime", standard) == RunMode{"wasmtime", true});
  CHECK(parse_mode("wasmtime/engine", standard) == RunMode{"wasmtime", false});
  CHECK(parse_mode("wasmtime/module", {"wasmedge", false}) == RunMode{"wasmtime", true});
  CHECK(parse_mode("wasmtime/other", standard) == RunMode{"wasmtime/other", false});
  CHECK(parse_mode("/usr/bin/runc", standard) == RunMode{"/usr/bin/runc", false});
  for (const RunMode& mode : {RunMode{"wasmedge", true}, RunMode{"wasmedge", false}}) {
    CHECK(parse_mode(to_string(mode), {"wasmedge", false}) == mode);
  }
}

TEST_CASE("wasm: path#function") {
  CHECK(split_module("/app.wasm") == std::pair<std::string, std::string>("/app.wasm", ""));
  CHECK(split_module("/app.wasm#run") == std::pair<std::string, std::string>("/app.wasm", "run"));
  CHECK(split_module("/a#b/app.wasm#run") ==
        std::pair<std::string, std::string>("/a#b/app.wasm", "run"));
}

TEST_CASE("wasm: a container's spec in the worker's terms") {
  const auto blueprint = plan_container(spec_of(spec_with("")));
  INFO((blueprint ? "" : blueprint.error().message));
  REQUIRE(blueprint);
  Plan expected;
  expected.module = "/app.wasm";
  expected.function = "run";
  expected.args = {"/app.wasm", "x"};
  expected.env = {"A=b", "PWD=/srv"};
  expected.cwd = "/srv";
  expected.preopens = {{"/", "/", false}};
  expected.uid = 1000;
  expected.gid = 1001;
  expected.groups = {5, 6};
  expected.umask = 077;
  expected.limits = {{RLIMIT_NOFILE, 64, 128}};
  expected.memory_pages = 16;
  expected.root_readonly = true;
  CHECK(blueprint->plan == expected);
  // No /proc, /sys, /dev/pts.
  REQUIRE(blueprint->mounts.size() == 3);
  CHECK(blueprint->mounts[0].devices);
  CHECK(blueprint->mounts[0].target == "/dev");
  CHECK(blueprint->mounts[1].target == "/data");
  CHECK(blueprint->mounts[1].plan.source == "/host");
  CHECK_FALSE(blueprint->mounts[1].recursive_readonly);
  CHECK(blueprint->mounts[2].recursive_readonly);
  CHECK(blueprint->mounts[2].plan.data == "");
  CHECK(blueprint->namespaces == std::vector<std::string>{"/n/net", "/n/ipc"});
  CHECK(blueprint->user_namespace == "/n/user");
  CHECK(blueprint->pid_namespace == "");
  CHECK_FALSE(blueprint->host_pid);
  CHECK(blueprint->cgroups_path == "/pods/c1");
  CHECK(blueprint->limits.memory == 1048576);
  CHECK(blueprint->oom_score_adj == 999);
}

TEST_CASE("wasm: what a module cannot have is refused by its name") {
  const auto refused = [](const std::string& text) {
    const auto blueprint = plan_container(spec_of(text));
    return blueprint ? std::string() : blueprint.error().message;
  };
  CHECK(refused(spec_with(R"(,"devices":[{"path":"/dev/kvm"}])"))
            .starts_with("linux.devices: a WebAssembly module has no devices"));
  CHECK(refused(R"({"process":{"args":["a"],"cwd":"/"},"hooks":{"createRuntime":[{"path":"/x"}]}})")
            .starts_with("hooks.createRuntime: no hooks"));
  CHECK(refused(R"({"process":{"args":["#run"],"cwd":"/"}})") ==
        "process.args[0]: \"#run\" names no module");
  CHECK(refused(R"({"process":{"args":["a"],"rlimits":[{"type":"RLIMIT_X"}]}})") ==
        "process.rlimits.type: \"RLIMIT_X\" is not known");
  CHECK(refused("{}") == "process: missing");
}

TEST_CASE("oci process: what a driver needs that starts processes itself") {
  const auto view = oci::parse_process(
      R"({"args":["a"],"env":["B=c"],"cwd":"/","user":{"uid":7,"additionalGids":[4294967295]},)"
      R"("rlimits":[{"type":"RLIMIT_CPU","soft":18446744073709551615,"hard":1}]})");
  REQUIRE(view);
  CHECK(view->user == oci::User{7, 0});
  CHECK(view->groups == std::vector<std::uint32_t>{4294967295U});
  CHECK_FALSE(view->umask);
  CHECK(view->limits ==
        std::vector<oci::ProcessView::Limit>{{"RLIMIT_CPU", 18446744073709551615ULL, 1}});
  for (const char* bad : {R"({"args":[]})", R"({"args":["a"],"rlimits":{}})",
                          R"({"args":["a"],"user":{"additionalGids":[-1]}})",
                          R"({"args":["a"],"user":{"umask":"x"}})",
                          R"({"args":["a"],"rlimits":[{"type":"RLIMIT_CPU","soft":-1}]})"}) {
    INFO(bad);
    CHECK_FALSE(oci::parse_process(bad));
  }
}

TEST_CASE("wasm config: the dump reads back, and a loader of its own reaches the engine") {
  WasmConfig config;
  config.wasmedge_library = "/opt/lib/libwasmedge.so.0";
  config.wasmedge_loader = "/opt/lib/ld.so";
  config.wasmedge_library_path = "/opt/lib";
  const std::string dump = wasm_config_table(config).dump();
  const auto entries = daemon::parse_toml(dump, "dump");
  REQUIRE(entries);
  WasmConfig again;
  CHECK(again.engines().front().loader == "");
  REQUIRE(wasm_config_table(again).apply(*entries));
  CHECK(wasm_config_table(again).dump() == dump);
  CHECK(again.engines().front().library == "/opt/lib/libwasmedge.so.0");
  CHECK(again.engines().front().loader == "/opt/lib/ld.so");
  CHECK(again.engines().front().library_path == "/opt/lib");
}

}  // namespace kuasar::wasm
