#include <sys/socket.h>
#include <sys/un.h>

#include <boost/json/serialize.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <sstream>

#include "base/files.h"
#include "base/version.h"
#include "ctl/print.h"
#include "ctl/views.h"

namespace kuasar::ctl {
namespace {

namespace fs = std::filesystem;

class TempDir {
 public:
  TempDir() {
    char name[] = "/tmp/kuasar-ctl-XXXXXX";
    REQUIRE(::mkdtemp(name) != nullptr);
    dir_ = name;
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  ~TempDir() { fs::remove_all(dir_); }
  const fs::path& path() const { return dir_; }

 private:
  fs::path dir_;
};

api::Pod pod(const std::string& id, const std::string& name) {
  api::Pod pod;
  pod.mutable_state()->set_id(id);
  pod.mutable_state()->set_phase(state::v1::SandboxState::RUNNING);
  pod.mutable_state()->mutable_created_at()->set_seconds(1000);
  auto* metadata = pod.mutable_state()->mutable_config()->mutable_metadata();
  metadata->set_name(name);
  metadata->set_namespace_("default");
  metadata->set_uid("uid-" + name);
  return pod;
}

api::Container* add_container(api::Pod& pod, const std::string& id, const std::string& name) {
  api::Container* container = pod.add_containers();
  container->set_name(name);
  container->set_stdio("PASS");
  container->mutable_state()->set_id(id);
  container->mutable_state()->set_phase(state::v1::ContainerState::RUNNING);
  container->mutable_state()->mutable_init()->set_pid(77);
  return container;
}

std::vector<PodList> two_pods() {
  api::Pod web = pod("aaa111", "web");
  add_container(web, "c0ffee01", "nginx");
  state::v1::ContainerState* ended = add_container(web, "c0ffee02", "setup")->mutable_state();
  ended->set_phase(state::v1::ContainerState::STOPPED);
  ended->set_exit_status(3);
  ended->mutable_exited_at()->set_seconds(1010);
  api::Pod db = pod("aab222", "db");
  add_container(db, "deadbeef", "nginx");
  return {{"kuasar-runc", {web, db}}};
}

Now at(long long seconds) {
  return std::chrono::system_clock::from_time_t(seconds);
}

std::string refused(const Result<Found>& found) {
  REQUIRE_FALSE(found);
  return found.error().message;
}

api::HealthResponse good_health() {
  api::HealthResponse health;
  health.set_name("runc-sandboxer");
  health.set_version("1.2.3");
  health.set_pid(5);
  health.mutable_started_at()->set_seconds(1000);
  health.set_keeper_pid(6);
  health.set_keeper_version("1.2.3");
  health.set_pods(1);
  health.set_containers(2);
  return health;
}

}  // namespace

TEST_CASE("ctl: a table is aligned, cut to its width, and never ends in blanks") {
  CHECK(table({"A", "LONG"}, {{"x", "1"}, {"yyyy"}}) == "A     LONG\nx     1\nyyyy\n");
  const std::string wide = table({"ONE", "TWO"}, {{std::string(90, 'a'), std::string(60, 'b')}});
  std::istringstream lines(wide);
  std::string line;
  std::getline(lines, line);
  std::getline(lines, line);
  CHECK(line.size() <= 100);
  CHECK(line.find("aa..") != std::string::npos);
  CHECK(line.ends_with("bb.."));
  // What a pod is named must not reach the terminal as a command.
  CHECK(table({"A"}, {{"x\x1b[2J\n"}}) == "A\nx?[2J?\n");
}

TEST_CASE("ctl: paragraphs, ages and sizes") {
  CHECK(paragraph("one two three", 2, 9) == "  one two\n  three\n");
  CHECK(paragraph("unbreakable", 2, 5) == "  unbreakable\n");
  CHECK(age(-5) == "0s");
  CHECK(age(59) == "59s");
  CHECK(age(3599) == "59m");
  CHECK(age(86399) == "23h");
  CHECK(age(86400 * 3) == "3d");
  CHECK(bytes(1023) == "1023");
  CHECK(bytes(1536) == "1.5 KiB");
  CHECK(bytes(1ULL << 30) == "1.0 GiB");
}

TEST_CASE("ctl: JSON is pretty, in order, and escaped") {
  boost::json::object object{{"b", 1}, {"a", boost::json::array{true, nullptr}}, {"e", "\"\n"}};
  object["empty"] = boost::json::array();
  CHECK(pretty(object) ==
        "{\n  \"b\": 1,\n  \"a\": [\n    true,\n    null\n  ],\n  \"e\": \"\\\"\\n\",\n"
        "  \"empty\": []\n}\n");
}

TEST_CASE("ctl: sockets are found by name and kind") {
  const TempDir run;
  const auto listen = [&](const std::string& dir) {
    fs::create_directories(run.path() / dir);
    const std::string path = run.path() / dir / "ctl.sock";
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path.c_str(), path.size());
    const UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    REQUIRE(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
    return path;
  };
  CHECK(find_sockets(run.path() / "missing").empty());
  const std::string wasm = listen("kuasar-wasm");
  const std::string runc = listen("kuasar-runc");
  listen("other");
  fs::create_directories(run.path() / "kuasar-keeper");
  fs::create_directories(run.path() / "kuasar-odd");
  REQUIRE(write_file(run.path() / "kuasar-odd" / "ctl.sock", "no socket"));
  CHECK(find_sockets(run.path()) == std::vector<std::string>{runc, wasm});
}

TEST_CASE("ctl: nobody at a socket is told in words") {
  const TempDir run;
  const auto daemon = Daemon::connect(run.path() / "ctl.sock");
  REQUIRE_FALSE(daemon);
  CHECK(daemon.error().code == Code::kUnavailable);
  CHECK(daemon.error().message.find("no sandboxer answers on") == 0);
}

TEST_CASE("ctl: pods are found by id, beginning and name") {
  std::vector<PodList> lists = two_pods();
  CHECK(find_pod(lists, "aaa111")->pod == "aaa111");
  CHECK(find_pod(lists, "aab")->pod == "aab222");
  CHECK(find_pod(lists, "web")->pod == "aaa111");
  CHECK(find_pod(lists, "default/db")->pod == "aab222");
  CHECK(refused(find_pod(lists, "aa")) ==
        "\"aa\" fits 2 pods (aaa111, aab222): give more of the id");
  CHECK(refused(find_pod(lists, "zzz")).find("no pod \"zzz\"") == 0);
  CHECK(refused(find_pod(lists, "")).find("no pod") == 0);
  // A whole id wins over another's name, a name over the beginning of an id.
  lists.push_back({"kuasar-wasm", {pod("bbb", "aaa111"), pod("ccc", "aab")}});
  CHECK(find_pod(lists, "aaa111")->list == 0);
  CHECK(find_pod(lists, "aab")->pod == "ccc");
  CHECK(find_pod(lists, "aab")->list == 1);
}

TEST_CASE("ctl: containers are found by id and by POD/NAME") {
  const std::vector<PodList> lists = two_pods();
  CHECK(find_container(lists, "dead")->container == "deadbeef");
  CHECK(find_container(lists, "web/nginx")->container == "c0ffee01");
  CHECK(find_container(lists, "default/db/nginx")->container == "deadbeef");
  CHECK(find_container(lists, "aaa/c0ffee02")->container == "c0ffee02");
  CHECK(refused(find_container(lists, "c0ffee")).find("fits 2 containers") != std::string::npos);
  CHECK(refused(find_container(lists, "nginx")).find("no container") == 0);
  CHECK(refused(find_container(lists, "web/none")).find("no container \"none\"") == 0);
}

TEST_CASE("ctl: list for people") {
  CHECK(pods_text({}, at(0)) == "no pods\n");
  CHECK(pods_text(two_pods(), at(1130)) ==
        "ID          NAMESPACE  NAME   UID      STATE     AGE  PID\n"
        "aaa111      default    web    uid-web  running   2m\n"
        "  c0ffee01             nginx           running        77\n"
        "  c0ffee02             setup           exited 3  2m\n"
        "aab222      default    db     uid-db   running   2m\n"
        "  deadbeef             nginx           running        77\n");
  std::vector<PodList> several = two_pods();
  several[0].pods[0].set_problem("too new");
  several.push_back({"kuasar-wasm", {}});
  const std::string text = pods_text(several, at(1130));
  CHECK(text.starts_with("DAEMON       ID"));
  CHECK(text.find("unusable") != std::string::npos);
  CHECK(pod_ids(several) == "aaa111\naab222\n");
}

TEST_CASE("ctl: list as JSON") {
  std::vector<PodList> lists = two_pods();
  lists[0].pods.pop_back();
  CHECK(boost::json::serialize(pods_json(lists)) ==
        R"({"pods":[{"daemon":"kuasar-runc","id":"aaa111","namespace":"default","name":"web",)"
        R"("uid":"uid-web","attempt":0,"state":"running","created_at":"1970-01-01T00:16:40Z",)"
        R"("problem":"","containers":[{"id":"c0ffee01","name":"nginx","state":"running",)"
        R"("pid":77,"execs":0},{"id":"c0ffee02","name":"setup","state":"stopped","pid":0,)"
        R"("execs":0,"exit_status":3,"exited_at":"1970-01-01T00:16:50Z"}]}]})");
  CHECK(boost::json::serialize(pods_json({})) == R"({"pods":[]})");
}

TEST_CASE("ctl: inspect shows the records") {
  const boost::json::value json = pod_json("kuasar-runc", two_pods()[0].pods[0]);
  CHECK(json.at("sandbox").at("id") == "aaa111");
  CHECK(json.at("containers").at(0).at("name") == "nginx");
  CHECK(json.at("containers").at(0).at("stdio") == "PASS");
  CHECK(json.at("containers").at(0).at("init").at("pid") == 77);
}

TEST_CASE("ctl: a daemon that is well has no findings") {
  const DaemonHealth daemon{"/run/kuasar-runc/ctl.sock", "", good_health()};
  CHECK(findings_of(daemon).empty());
  CHECK(health_text({daemon}, at(1060)) ==
        "runc-sandboxer: well\n"
        "  version 1.2.3, pid 5, up 1m; keeper 1.2.3, pid 6\n"
        "  1 pod, 2 containers, 0 execs; 0 events waiting, 0 dropped\n");
  const boost::json::value json = health_json({daemon});
  CHECK(json.at("daemons").at(0).at("findings").as_array().empty());
  CHECK(json.at("daemons").at(0).at("keeper").at("pid") == 6);
  CHECK(json.at("daemons").at(0).at("answers") == true);
}

TEST_CASE("ctl: health names what is wrong") {
  DaemonHealth daemon{"/run/kuasar-runc/ctl.sock", "", good_health()};
  auto* slow = daemon.health.add_slow();
  slow->set_what("work in a thread, begun at sandbox/x.cc:1");
  slow->set_seconds(31);
  auto* unusable = daemon.health.add_unusable();
  unusable->set_id("p1");
  unusable->set_words("needs version 9");
  daemon.health.add_unexplained("/run/kuasar-runc/sandboxes/odd");
  daemon.health.set_keeper_version("1.2.2");
  daemon.health.set_events_waiting(500);
  const std::vector<std::string> findings = findings_of(daemon);
  REQUIRE(findings.size() == 5);
  CHECK(findings[0] == "takes 31 s already: work in a thread, begun at sandbox/x.cc:1");
  CHECK(findings[1] == "pod p1 is left alone: needs version 9");
  CHECK(findings[2].find("/run/kuasar-runc/sandboxes/odd") == 0);
  CHECK(health_text({daemon}, at(1060)).starts_with("runc-sandboxer: 5 findings\n"));
  const DaemonHealth silent{"/s", "no sandboxer answers on /s", {}};
  CHECK(findings_of(silent).size() == 1);
  CHECK(health_text({silent}, at(0)).starts_with("/s: 1 finding\n"));
  CHECK(health_json({silent}).at("daemons").at(0).at("answers") == false);
}

TEST_CASE("ctl: usage out of v1 and v2 cgroups") {
  const TempDir dir;
  const auto write = [&](const std::string& file, const std::string& text) {
    fs::create_directories((dir.path() / file).parent_path());
    REQUIRE(write_file(dir.path() / file, text));
  };
  write("cpu/cpuacct.usage", "1500000000\n");
  write("cpu/cpu.stat", "nr_periods 0\nnr_throttled 0\n");
  write("memory/memory.usage_in_bytes", "5000\n");
  write("memory/memory.stat", "inactive_file 1\ntotal_inactive_file 1000\n");
  write("pids/pids.current", "3\n");
  const Usage v1 = read_usage({dir.path() / "cpu", dir.path() / "memory", dir.path() / "pids"});
  CHECK(v1.cpu_seconds == 1.5);
  CHECK(v1.memory == 4000);
  CHECK(v1.pids == 3);
  write("v2/cpu.stat", "usage_usec 2500000\nuser_usec 1\n");
  write("v2/memory.current", "100\n");
  write("v2/memory.stat", "anon 1\ninactive_file 500\n");
  write("v2/pids.current", "2\n");
  const Usage v2 = read_usage({dir.path() / "v2"});
  CHECK(v2.cpu_seconds == 2.5);
  CHECK(v2.memory == 0);
  CHECK(v2.pids == 2);
  const std::vector<Usage> running = usage_of(two_pods());
  REQUIRE(running.size() == 2);
  CHECK(running[0].id == "c0ffee01");
  CHECK(usage_text(running).find("deadbeef   db   nginx") != std::string::npos);
  CHECK(usage_text({}) == "no container is running\n");
  CHECK(usage_json(running).at("containers").at(1).at("pod") == "aab222");
}

}  // namespace kuasar::ctl
