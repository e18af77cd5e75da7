#include <fcntl.h>
#include <google/protobuf/util/json_util.h>
#include <sys/mount.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "containerd/task/v3/task.pb.h"
#include "e2e/hostile_daemon.h"
#include "kuasar/state/v1/state.pb.h"
#include "support/census.h"
#include "support/controller_client.h"
#include "support/ttrpc_probe.h"

// State files that this daemon did not write, and a state disk that is full.

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;
namespace task = containerd::task::v3;
namespace state = kuasar::state::v1;
using Catch::Matchers::ContainsSubstring;

constexpr int kOk = 0;
constexpr int kNotFound = 5;
constexpr int kResourceExhausted = 8;
constexpr int kFailedPrecondition = 9;

void run_pod(LoneDaemon& daemon, const std::string& id) {
  ControllerClient controller(daemon.listen());
  const auto created = controller.create(pod_request(id));
  INFO(created.message);
  REQUIRE(created.code == kOk);
  REQUIRE(controller.start(id).code == kOk);
}

// The file as a version of the far future would have left it: readers from 1000 on may read it,
// and it holds a field that nobody knows yet.
std::string of_the_future(const std::string& content) {
  state::SandboxState record;
  if (!google::protobuf::util::JsonStringToMessage(content, &record).ok()) {
    throw std::runtime_error("sandbox.json is no SandboxState:\n" + content);
  }
  record.mutable_header()->set_min_reader(1000);
  record.mutable_header()->set_written_by("99.1.2");
  std::string json;
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  if (!google::protobuf::util::MessageToJsonString(record, &json, options).ok()) {
    throw std::runtime_error("cannot print a SandboxState");
  }
  return json.substr(0, json.rfind('}')) + ",\"field_of_the_future\":{\"x\":[1,2]}}";
}

struct Damage {
  const char* name;
  std::function<void(const fs::path&)> inflict;
};

std::vector<Damage> damages() {
  return {{"cut in half",
           [](const fs::path& file) {
             const std::string whole = read_whole(file);
             write_whole(file, whole.substr(0, whole.size() / 2));
           }},
          {"empty", [](const fs::path& file) { write_whole(file, ""); }},
          {"zeros", [](const fs::path& file) { write_whole(file, std::string(4096, '\0')); }},
          {"an array", [](const fs::path& file) { write_whole(file, "[1, 2, 3]"); }},
          {"of wrong types",
           [](const fs::path& file) { write_whole(file, R"({"header": 7, "id": {}})"); }},
          {"nested 100,000 deep",
           [](const fs::path& file) { write_whole(file, std::string(100000, '[')); }},
          {"of another sandbox",
           [](const fs::path& file) {
             std::string content = read_whole(file);
             const std::size_t at = content.find("damaged");
             if (at == std::string::npos) {
               throw std::runtime_error("sandbox.json does not hold its id:\n" + content);
             }
             write_whole(file, content.replace(at, 7, "witness"));
           }},
          {"a directory", [](const fs::path& file) {
             fs::remove(file);
             fs::create_directory(file);
           }}};
}

// A tmpfs that the daemon finds at its --dir, small enough to be filled.
class SmallDisk {
 public:
  explicit SmallDisk(fs::path dir) : dir_(std::move(dir)) {
    fs::create_directory(dir_);
    if (::mount("tmpfs", dir_.c_str(), "tmpfs", 0, "size=1m,mode=711") != 0) {
      throw std::system_error(errno, std::generic_category(), "mount " + dir_.native());
    }
  }
  SmallDisk(const SmallDisk&) = delete;
  SmallDisk& operator=(const SmallDisk&) = delete;
  ~SmallDisk() { ::umount2(dir_.c_str(), MNT_DETACH); }

  // Takes the last page.
  void fill() const {
    const int fd = ::open(ballast().c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    const std::string page(4096, 'x');
    while (::write(fd, page.data(), page.size()) > 0) {
    }
    ::close(fd);
  }
  void free() const { fs::remove(ballast()); }

 private:
  fs::path ballast() const { return dir_ / "oci" / ".ballast"; }

  fs::path dir_;
};

}  // namespace

TEST_CASE("a state file of a future version keeps its pod READY and refuses changes",
          "[root][e2e][hostile]") {
  CgroupParent cgroup;
  LoneDaemon daemon;
  daemon.start();
  run_pod(daemon, "future");
  run_pod(daemon, "witness");
  REQUIRE(daemon.stop().code == 0);
  const fs::path file = daemon.sandbox_file("future");
  daemon.leaves(file.parent_path());
  const std::string content = of_the_future(read_whole(file));
  write_whole(file, content);
  daemon.start();
  {
    ControllerClient controller(daemon.listen());
    CHECK(controller.status("future").response.state() == "SANDBOX_READY");
    for (const auto& [code, message] :
         {std::pair(controller.stop("future").code, controller.stop("future").message),
          std::pair(controller.shutdown("future").code, controller.shutdown("future").message),
          std::pair(controller.start("future").code, controller.start("future").message)}) {
      CHECK(code == kFailedPrecondition);
      CHECK_THAT(message, ContainsSubstring("99.1.2"));
    }
    CHECK(controller.create(pod_request("future")).code != kOk);
    TtrpcProbe probe(daemon.task_socket());
    const auto reply =
        probe.call("Create", task_request(daemon, "future", "newcomer", {"sleep", "1000"}));
    CHECK(reply.code == kFailedPrecondition);
    CHECK_THAT(reply.message, ContainsSubstring("99.1.2"));
    CHECK(controller.status("future").response.state() == "SANDBOX_READY");
    CHECK(controller.status("witness").response.state() == "SANDBOX_READY");
    CHECK(controller.shutdown("witness").code == kOk);
  }
  CHECK(read_whole(file) == content);
  CHECK(daemon.stop().code == 0);
  CHECK(read_whole(file) == content);
}

TEST_CASE("a damaged state file is kept, named in the log, and harms no other pod",
          "[root][e2e][hostile]") {
  for (const Damage& damage : damages()) {
    DYNAMIC_SECTION(damage.name) {
      CgroupParent cgroup;
      LoneDaemon daemon;
      daemon.start();
      run_pod(daemon, "damaged");
      run_pod(daemon, "witness");
      REQUIRE(daemon.stop().code == 0);
      const fs::path file = daemon.sandbox_file("damaged");
      daemon.leaves(file.parent_path());
      damage.inflict(file);
      const std::string content = fs::is_directory(file) ? "" : read_whole(file);
      const std::size_t old_output = daemon.output().size();
      daemon.start();
      {
        ControllerClient controller(daemon.listen());
        CHECK(controller.status("witness").response.state() == "SANDBOX_READY");
        const auto status = controller.status("damaged");
        INFO(status.message);
        CHECK(status.response.state() == "SANDBOX_READY");
        const auto stopped = controller.stop("damaged");
        CHECK(stopped.code == kFailedPrecondition);
        CHECK_THAT(stopped.message, ContainsSubstring(file.native()));
        run_pod(daemon, "newcomer");
        CHECK(controller.shutdown("newcomer").code == kOk);
        CHECK(controller.shutdown("witness").code == kOk);
      }
      CHECK_THAT(daemon.output().substr(old_output), ContainsSubstring(file.native()));
      CHECK(fs::exists(file));
      CHECK((fs::is_directory(file) ? "" : read_whole(file)) == content);
      CHECK(daemon.stop().code == 0);
    }
  }
}

TEST_CASE("a damaged container.json is kept and named, and its pod is not lost over it",
          "[root][e2e][hostile]") {
  CgroupParent cgroup;
  LoneDaemon daemon;
  daemon.start();
  run_pod(daemon, "pod");
  const auto request = task_request(daemon, "pod", "damaged", {"sleep", "1000"});
  REQUIRE(TtrpcProbe(daemon.task_socket()).call("Create", request).code == kOk);
  REQUIRE(daemon.stop().code == 0);
  const fs::path file = daemon.dir() / "sandboxes/pod/containers/damaged/container.json";
  const std::string whole = read_whole(file);
  std::string content = whole.substr(0, whole.size() / 2);
  SECTION("cut in half") {}
  SECTION("of a future version") {
    state::ContainerState record;
    REQUIRE(google::protobuf::util::JsonStringToMessage(whole, &record).ok());
    record.mutable_header()->set_min_reader(1000);
    record.mutable_header()->set_written_by("99.1.2");
    google::protobuf::util::JsonPrintOptions options;
    options.preserve_proto_field_names = true;
    content.clear();
    REQUIRE(google::protobuf::util::MessageToJsonString(record, &content, options).ok());
  }
  write_whole(file, content);
  const std::size_t old_output = daemon.output().size();
  daemon.start();
  ControllerClient controller(daemon.listen());
  CHECK(controller.status("pod").response.state() == "SANDBOX_READY");
  CHECK_THAT(daemon.output().substr(old_output), ContainsSubstring(file.native()));
  // What we cannot read we cannot end: the pod says so instead of leaving a process behind.
  for (int i = 0; i < 2; ++i) {
    const auto shut = controller.shutdown("pod");
    CHECK(shut.code == kFailedPrecondition);
    CHECK_THAT(shut.message, ContainsSubstring("damaged"));
  }
  CHECK(read_whole(file) == content);
  // Whoever repairs the file gets the pod back.
  REQUIRE(daemon.stop().code == 0);
  write_whole(file, whole);
  daemon.start();
  ControllerClient again(daemon.listen());
  const auto shut = again.shutdown("pod");
  INFO(shut.message);
  CHECK(shut.code == kOk);
  CHECK_FALSE(fs::exists(daemon.dir() / "sandboxes" / "pod"));
}

TEST_CASE("what a crash leaves before the first save is removed", "[root][e2e][hostile]") {
  CgroupParent cgroup;
  LoneDaemon daemon;
  daemon.start();
  run_pod(daemon, "witness");
  REQUIRE(daemon.stop().code == 0);
  const fs::path sandboxes = daemon.dir() / "sandboxes";
  fs::create_directories(sandboxes / "unsaved" / "ns");
  fs::create_directories(sandboxes / "half");
  write_whole(sandboxes / "half" / ".tmp-sandbox.json", "{\"id\":\"ha");
  daemon.start();
  ControllerClient controller(daemon.listen());
  CHECK(controller.status("witness").response.state() == "SANDBOX_READY");
  CHECK(controller.status("unsaved").code == kNotFound);
  CHECK(eventually(
      [&] { return !fs::exists(sandboxes / "unsaved") && !fs::exists(sandboxes / "half"); }));
  CHECK(controller.create(pod_request("unsaved")).code == kOk);
  CHECK(controller.shutdown("unsaved").code == kOk);
  CHECK(controller.shutdown("witness").code == kOk);
}

TEST_CASE("what is no sandbox is left alone below sandboxes/", "[root][e2e][hostile]") {
  CgroupParent cgroup;
  LoneDaemon daemon;
  daemon.start();
  run_pod(daemon, "witness");
  REQUIRE(daemon.stop().code == 0);
  const fs::path sandboxes = daemon.dir() / "sandboxes";
  write_whole(sandboxes / "a file", "somebody's");
  fs::create_directory(sandboxes / "not an id");
  fs::create_symlink("/etc", sandboxes / "link");
  for (const char* name : {"a file", "not an id", "link"}) daemon.leaves(sandboxes / name);
  const std::size_t old_output = daemon.output().size();
  daemon.start();
  ControllerClient controller(daemon.listen());
  CHECK(controller.status("witness").response.state() == "SANDBOX_READY");
  CHECK(controller.status("link").code == kNotFound);
  CHECK(read_whole(sandboxes / "a file") == "somebody's");
  CHECK(fs::is_directory(sandboxes / "not an id"));
  CHECK(fs::is_symlink(sandboxes / "link"));
  const std::string output = daemon.output().substr(old_output);
  for (const char* name : {"a file", "not an id", "link"}) {
    CHECK_THAT(output, ContainsSubstring(name));
  }
  CHECK(controller.shutdown("witness").code == kOk);
}

TEST_CASE("the state of another boot is removed", "[root][e2e][hostile]") {
  CgroupParent cgroup;
  LoneDaemon daemon;
  daemon.start();
  run_pod(daemon, "yesterday");
  REQUIRE(daemon.stop().code == 0);
  daemon.kill_keeper();
  unmount_below(daemon.dir() / "sandboxes");
  write_whole(daemon.dir() / "boot_id", "00000000-0000-0000-0000-000000000000\n");
  daemon.start();
  ControllerClient controller(daemon.listen());
  CHECK(controller.status("yesterday").code == kNotFound);
  CHECK_FALSE(fs::exists(daemon.dir() / "sandboxes" / "yesterday"));
  run_pod(daemon, "today");
  CHECK(controller.shutdown("today").code == kOk);
}

TEST_CASE("a full state disk refuses new work in words, leaves nothing and recovers",
          "[root][e2e][hostile]") {
  CgroupParent cgroup;
  LoneDaemon daemon;
  const SmallDisk disk(daemon.dir());
  daemon.leaves("mount " + daemon.dir().native());
  daemon.start();
  ControllerClient controller(daemon.listen());
  run_pod(daemon, "witness");
  const auto request = task_request(daemon, "witness", "newcomer", {"sleep", "1000"});
  auto probe = std::make_unique<TtrpcProbe>(daemon.task_socket());
  task::StateRequest state_request;
  state_request.set_id("newcomer");
  REQUIRE(probe->call("State", state_request).code == kNotFound);
  REQUIRE(controller.status("witness").code == kOk);

  disk.fill();
  Census before = Census::take_settled(daemon.scope());
  for (int i = 0; i < 3; ++i) {
    const auto answer = controller.create(pod_request("refused"));
    CHECK(answer.code == kResourceExhausted);
    CHECK_THAT(answer.message, ContainsSubstring(daemon.dir().native()));
    CHECK(controller.status("refused").code == kNotFound);
    const auto reply = probe->call("Create", request);
    CHECK(reply.code == kResourceExhausted);
    CHECK_THAT(reply.message, ContainsSubstring(daemon.dir().native()));
    CHECK(probe->call("State", state_request).code == kNotFound);
  }
  CHECK(controller.status("witness").response.state() == "SANDBOX_READY");
  auto left = left_behind(before, daemon);
  INFO("left behind:" << listed(left));
  CHECK(left.empty());

  disk.free();
  before = Census::take_settled(daemon.scope());
  run_pod(daemon, "accepted");
  CHECK(controller.shutdown("accepted").code == kOk);
  const auto created = probe->call("Create", request);
  INFO(created.message);
  CHECK(created.code == kOk);
  task::DeleteRequest remove;
  remove.set_id("newcomer");
  CHECK(probe->call("Delete", remove).code == kOk);
  left = left_behind(before, daemon);
  CHECK(left == std::vector<std::string>());
  CHECK(controller.shutdown("witness").code == kOk);
  probe.reset();
  daemon.end();
}

TEST_CASE("a pod is stopped and removed on a full state disk", "[root][e2e][hostile]") {
  CgroupParent cgroup;
  LoneDaemon daemon;
  const SmallDisk disk(daemon.dir());
  daemon.leaves("mount " + daemon.dir().native());
  daemon.start();
  ControllerClient controller(daemon.listen());
  run_pod(daemon, "leaver");
  disk.fill();
  const auto stopped = controller.stop("leaver");
  INFO(stopped.message);
  CHECK(stopped.code == kOk);
  CHECK(controller.status("leaver").response.state() == "SANDBOX_NOTREADY");
  const auto shut = controller.shutdown("leaver");
  INFO(shut.message);
  CHECK(shut.code == kOk);
  CHECK(controller.status("leaver").code == kNotFound);
  CHECK_FALSE(fs::exists(daemon.dir() / "sandboxes" / "leaver"));
  CHECK(daemon.stop().code == 0);
  disk.free();
  daemon.end();
}

}  // namespace kuasar::test
