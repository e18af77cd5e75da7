#include <fmt/format.h>
#include <signal.h>
#include <sys/stat.h>

#include <boost/json.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <string>
#include <thread>

#include "containerd/runc/v1/options.pb.h"
#include "containerd/task/v3/task.pb.h"
#include "e2e/hostile_stage.h"
#include "support/process.h"
#include "support/ttrpc_probe.h"

// Bundles, specs, images and OCI runtimes that no decent node has: an answer in words, nothing
// left, nobody else harmed.

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;
namespace task = containerd::task::v3;
using Catch::Matchers::ContainsSubstring;
using namespace std::chrono_literals;

constexpr int kOk = 0;
constexpr int kInvalidArgument = 3;
constexpr int kNotFound = 5;

template <typename Request>
Request with_id(const std::string& id) {
  Request request;
  request.set_id(id);
  return request;
}

json::object read_spec(const fs::path& bundle) {
  return json::parse(read_whole(bundle / "config.json")).as_object();
}

void write_spec(const fs::path& bundle, const json::object& spec) {
  write_whole(bundle / "config.json", json::serialize(spec));
}

/// Runs a container to its end and returns its exit code, or its Create's words.
struct Outcome {
  std::string refused;
  int code = -1;
};

Outcome run(TtrpcProbe& probe, const task::CreateTaskRequest& request) {
  const TtrpcProbe::Reply created = probe.call("Create", request);
  if (created.code != kOk) return {created.message, -1};
  REQUIRE(probe.call("Start", with_id<task::StartRequest>(request.id())).code == kOk);
  const auto waited = probe.call("Wait", with_id<task::WaitRequest>(request.id()));
  task::WaitResponse exit;
  REQUIRE(exit.ParseFromString(waited.payload));
  CHECK(probe.call("Delete", with_id<task::DeleteRequest>(request.id())).code == kOk);
  return {"", static_cast<int>(exit.exit_status())};
}

// The daemon's loop is free: another client is answered at once.
void check_prompt(const LoneDaemon& daemon) {
  const auto begun = std::chrono::steady_clock::now();
  TtrpcProbe other(daemon.task_socket());
  CHECK(other.call("State", with_id<task::StateRequest>("nobody")).code == kNotFound);
  CHECK(std::chrono::steady_clock::now() - begun < 1s);
}

// A program that is called as an OCI runtime.
fs::path write_runtime(const LoneDaemon& daemon, const std::string& script) {
  const fs::path file = daemon.scratch() / "runtime";
  write_whole(file, "#!/bin/sh\n" + script + "\n");
  REQUIRE(::chmod(file.c_str(), 0755) == 0);
  return file;
}

// As a runtime handler's BinaryName asks for it.
task::CreateTaskRequest with_runtime(task::CreateTaskRequest request, const fs::path& runtime) {
  ::containerd::runc::v1::Options options;
  options.set_binary_name(runtime);
  request.mutable_options()->set_type_url("containerd.runc.v1.Options");
  request.mutable_options()->set_value(options.SerializeAsString());
  return request;
}

fs::path ctl_program() {
  if (const char* bin = std::getenv("KUASAR_LAB_BIN")) return fs::path(bin) / "kuasar-ctl";
  return fs::read_symlink("/proc/self/exe").parent_path().parent_path() / "bin" / "kuasar-ctl";
}

}  // namespace

TEST_CASE("a config.json of 10 MiB runs, of 20 MiB is refused, and nobody waits for it",
          "[root][e2e][hostile]") {
  WitnessStage stage;
  const auto request = task_request(stage.daemon, "witness", "large", {"true"});
  json::object spec = read_spec(request.bundle());
  const std::size_t mib = GENERATE(10, 20);
  CAPTURE(mib);
  spec["annotations"].as_object()["large"] = std::string(mib << 20, 'x');
  write_spec(request.bundle(), spec);
  const Census before = Census::take_settled(stage.daemon.scope());
  {
    TtrpcProbe probe(stage.daemon.task_socket());
    std::thread other([&] { check_prompt(stage.daemon); });
    const Outcome outcome = run(probe, request);
    other.join();
    INFO(outcome.refused);
    if (mib == 10) {
      CHECK(outcome.code == 0);
    } else {
      CHECK_THAT(outcome.refused, ContainsSubstring("config.json is larger than"));
    }
  }
  stage.check_unharmed(before);
}

TEST_CASE("a config.json of wrong types is refused by the field's name", "[root][e2e][hostile]") {
  WitnessStage stage;
  const auto request = task_request(stage.daemon, "witness", "types", {"true"});
  const json::object good = read_spec(request.bundle());
  const Census before = Census::take_settled(stage.daemon.scope());
  const auto refused = [&](const std::string& field,
                           const std::function<void(json::object&)>& spoil) {
    INFO(field);
    json::object spec = good;
    spoil(spec);
    write_spec(request.bundle(), spec);
    TtrpcProbe probe(stage.daemon.task_socket());
    const TtrpcProbe::Reply reply = probe.call("Create", request);
    INFO(reply.code << " " << reply.message);
    CHECK(reply.code == kInvalidArgument);
    CHECK_THAT(reply.message, ContainsSubstring(field));
  };
  refused("mounts", [](json::object& spec) { spec["mounts"] = "none"; });
  refused("mounts", [](json::object& spec) { spec["mounts"] = json::array{7}; });
  refused("destination", [](json::object& spec) {
    spec["mounts"].as_array()[0].as_object()["destination"] = json::object{};
  });
  refused("options", [](json::object& spec) {
    spec["mounts"].as_array()[0].as_object()["options"] = json::array{1, 2};
  });
  refused("root", [](json::object& spec) { spec["root"] = 5; });
  refused("process", [](json::object& spec) { spec["process"] = json::array{}; });
  refused("terminal", [](json::object& spec) { spec["process"].as_object()["terminal"] = "yes"; });
  refused("oomScoreAdj",
          [](json::object& spec) { spec["process"].as_object()["oomScoreAdj"] = "low"; });
  refused("linux", [](json::object& spec) { spec["linux"] = "none"; });
  refused("namespaces", [](json::object& spec) {
    spec["linux"].as_object()["namespaces"] = json::object{{"type", "pid"}};
  });
  refused("namespaces", [](json::object& spec) {
    spec["linux"].as_object()["namespaces"] = json::array{json::object{{"type", 3}}};
  });
  refused("cgroupsPath",
          [](json::object& spec) { spec["linux"].as_object()["cgroupsPath"] = json::array{}; });
  refused("uidMappings",
          [](json::object& spec) { spec["linux"].as_object()["uidMappings"] = "all"; });
  stage.check_unharmed(before);
}

TEST_CASE("annotations are data: they name no pod, no path and no option", "[root][e2e][hostile]") {
  WitnessStage stage;
  const auto request = task_request(stage.daemon, "witness", "annotated", {"true"});
  json::object spec = read_spec(request.bundle());
  json::object& annotations = spec["annotations"].as_object();
  annotations["io.kubernetes.cri.sandbox-id"] = "../../../../etc";
  annotations["io.kubernetes.cri.container-type"] = "sandbox";
  annotations["../../" + std::string(4000, 'k')] = "\n\t\x01\" --root=/ ; rm -rf /";
  annotations["io.kuasar.runtime"] = "/bin/false";
  write_spec(request.bundle(), spec);
  const Census before = Census::take_settled(stage.daemon.scope());
  {
    TtrpcProbe probe(stage.daemon.task_socket());
    const Outcome outcome = run(probe, request);
    INFO(outcome.refused);
    CHECK(outcome.code == 0);
  }
  stage.check_unharmed(before);
}

TEST_CASE("an image's links that lead outside are followed inside of it", "[root][e2e][hostile]") {
  WitnessStage stage;
  const fs::path outside = stage.daemon.scratch() / "outside";
  fs::create_directories(outside);
  for (const char* name : {"hosts", "hostname", "resolv.conf"}) {
    write_whole(outside / name, "precious\n");
  }
  const auto request = task_request(
      stage.daemon, "witness", "links",
      {"sh", "-c",
       "echo x >/etc/hosts; echo x >/etc/hostname; echo x >/dev/shm/x; echo x >/vol/x"});
  const fs::path image = stage.daemon.scratch() / "image";
  const std::string up = "../../../../../../../../..";
  for (const char* name : {"hosts", "hostname", "resolv.conf"}) {
    fs::create_symlink(up + (outside / name).native(), image / "etc" / name);
  }
  fs::create_symlink(outside, image / "vol");
  json::object spec = read_spec(request.bundle());
  spec["mounts"].as_array().push_back(json::object{{"destination", "/vol"},
                                                   {"type", "tmpfs"},
                                                   {"source", "tmpfs"},
                                                   {"options", json::array{"mode=755"}}});
  write_spec(request.bundle(), spec);
  const Census before = Census::take_settled(stage.daemon.scope());
  {
    TtrpcProbe probe(stage.daemon.task_socket());
    // Whether it runs or the runtime refuses it: what lies outside stays as it is.
    const Outcome outcome = run(probe, request);
    INFO(outcome.refused);
    CHECK((outcome.code == 0 || !outcome.refused.empty()));
  }
  for (const char* name : {"hosts", "hostname", "resolv.conf"}) {
    CHECK(read_whole(outside / name) == "precious\n");
  }
  CHECK(std::distance(fs::directory_iterator(outside), fs::directory_iterator()) == 3);
  stage.check_unharmed(before);
}

TEST_CASE("a mount over /proc or into it is refused in the runtime's words",
          "[root][e2e][hostile]") {
  WitnessStage stage;
  const auto request = task_request(stage.daemon, "witness", "proc", {"true"});
  const json::object good = read_spec(request.bundle());
  const Census before = Census::take_settled(stage.daemon.scope());
  for (const char* destination : {"/proc", "/proc/self/attr", "/dev/../proc/sys"}) {
    INFO(destination);
    json::object spec = good;
    spec["mounts"].as_array().push_back(json::object{{"destination", destination},
                                                     {"type", "bind"},
                                                     {"source", stage.daemon.scratch().native()},
                                                     {"options", json::array{"rbind"}}});
    write_spec(request.bundle(), spec);
    TtrpcProbe probe(stage.daemon.task_socket());
    const Outcome outcome = run(probe, request);
    INFO(outcome.code);
    CHECK_THAT(outcome.refused, ContainsSubstring("OCI runtime create failed"));
    CHECK_THAT(outcome.refused, ContainsSubstring("proc"));
  }
  stage.check_unharmed(before);
}

TEST_CASE("a bundle that vanishes in the middle of its Create is told, and leaves nothing",
          "[root][e2e][hostile]") {
  WitnessStage stage;
  if (!stage.daemon.has_failpoints()) SKIP("the sandboxer was built without failpoints");
  const auto request = task_request(stage.daemon, "witness", "vanishing", {"true"});
  const fs::path bundle = request.bundle();
  const fs::path aside = bundle.native() + ".away";
  const Census before = Census::take_settled(stage.daemon.scope());
  {
    stage.daemon.arm("container.bundle", "stop");
    TtrpcProbe probe(stage.daemon.task_socket());
    REQUIRE(probe.send(TtrpcProbe::request(probe.next_stream(), "Create", request)));
    REQUIRE(eventually([&] {
      const std::string stat = read_text(fmt::format("/proc/{}/stat", stage.daemon.pid()));
      return stat.find(") T ") != std::string::npos;
    }));
    fs::rename(bundle, aside);
    ::kill(stage.daemon.pid(), SIGCONT);
    const auto reply = probe.read_reply(20s);
    REQUIRE(reply.has_value());
    INFO(reply->message);
    CHECK(reply->code != kOk);
    CHECK_THAT(reply->message, ContainsSubstring(bundle.native()));
    CHECK(probe.call("State", with_id<task::StateRequest>("vanishing")).code == kNotFound);
  }
  fs::rename(aside, bundle);
  stage.check_unharmed(before);
}

TEST_CASE("a bundle whose files vanish under a container does not keep it from ending",
          "[root][e2e][hostile]") {
  WitnessStage stage;
  const auto request = task_request(stage.daemon, "witness", "bare", {"sleep", "1000"});
  const fs::path bundle = request.bundle();
  const Census before = Census::take_settled(stage.daemon.scope());
  {
    TtrpcProbe probe(stage.daemon.task_socket());
    REQUIRE(probe.call("Create", request).code == kOk);
    fs::rename(bundle / "config.json", bundle / "config.away");
    fs::rename(bundle / "sandbox", bundle / "sandbox.away");
    CHECK(probe.call("Start", with_id<task::StartRequest>("bare")).code == kOk);
    auto kill = with_id<task::KillRequest>("bare");
    kill.set_signal(9);
    CHECK(probe.call("Kill", kill).code == kOk);
    CHECK(probe.call("Wait", with_id<task::WaitRequest>("bare")).code == kOk);
    CHECK(probe.call("Delete", with_id<task::DeleteRequest>("bare")).code == kOk);
    fs::rename(bundle / "config.away", bundle / "config.json");
    fs::rename(bundle / "sandbox.away", bundle / "sandbox");
  }
  stage.check_unharmed(before);
}

TEST_CASE("an OCI runtime that is none is told in words", "[root][e2e][hostile]") {
  WitnessStage stage;
  // Of the options, so that one daemon meets them all.
  const auto refused = [&](const std::string& script) {
    const auto request = with_runtime(task_request(stage.daemon, "witness", "odd", {"true"}),
                                      write_runtime(stage.daemon, script));
    const Census before = Census::take_settled(stage.daemon.scope());
    std::string words;
    {
      TtrpcProbe probe(stage.daemon.task_socket());
      const TtrpcProbe::Reply reply = probe.call("Create", request);
      CHECK(reply.code != kOk);
      words = reply.message;
      CHECK(probe.call("State", with_id<task::StateRequest>("odd")).code == kNotFound);
    }
    stage.check_unharmed(before);
    CHECK_THAT(words, ContainsSubstring("OCI runtime create failed"));
    return words;
  };
  CHECK_THAT(refused("exit 0"), ContainsSubstring("reported success without a pid file"));
  CHECK_THAT(refused("exit 3"), ContainsSubstring("ended with exit code 3"));
  CHECK_THAT(refused("kill -SEGV $$"), ContainsSubstring("was killed by signal 11"));
  // Not JSON, not text, and a lot of it: into its log and into its streams.
  const std::string noise =
      "while [ $# -gt 0 ]; do case $1 in --log) log=$2;; --pid-file) pid=$2;; esac; shift; done\n"
      "head -c 3000000 /dev/urandom >>$log\n";
  CHECK_THAT(refused(noise + "head -c 3000000 /dev/urandom; exit 1"),
             ContainsSubstring("ended with exit code 1"));
  CHECK_THAT(refused(noise + "echo '{\"level\":\"error\",\"msg\":7}' >>$log; exit 1"),
             ContainsSubstring("ended with exit code 1"));
  for (const char* pid : {"-1", "0", "1e9", "99999999999999999999", "", "12 13", "abc"}) {
    INFO(pid);
    CHECK_THAT(refused(noise + "printf '%s' '" + pid + "' >$pid; exit 0"),
               ContainsSubstring("reported success, but its pid file"));
  }
  CHECK_THAT(refused(noise + "echo 4194303 >$pid; exit 0"), ContainsSubstring("No such process"));
}

TEST_CASE("an OCI runtime that hangs is named in health, and killed at its timeout",
          "[root][e2e][hostile]") {
  WitnessStage stage("runtime_timeout_secs = 14\n");
  const fs::path runtime = write_runtime(stage.daemon, "exec sleep 3600");
  const auto request =
      with_runtime(task_request(stage.daemon, "witness", "hanging", {"true"}), runtime);
  const Census before = Census::take_settled(stage.daemon.scope());
  {
    TtrpcProbe probe(stage.daemon.task_socket());
    REQUIRE(probe.send(TtrpcProbe::request(probe.next_stream(), "Create", request)));
    check_prompt(stage.daemon);
    std::string health;
    CHECK(eventually(
        [&] {
          const auto ran = run_program({ctl_program(), "--dir", stage.daemon.dir(), "health"});
          health = ran ? ran->output : "";
          return health.find("hanging/-/create") != std::string::npos && ran->code == 1;
        },
        40s));
    INFO(health);
    const auto reply = probe.read_reply(20s);
    REQUIRE(reply.has_value());
    CHECK(reply->code != kOk);
    CHECK_THAT(reply->message, ContainsSubstring("did not end within 14 s and was killed"));
  }
  stage.check_unharmed(before);
}

}  // namespace kuasar::test
