#include "e2e/hostile_daemon.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <string_view>
#include <system_error>
#include <thread>

#include "cri/runtime/v1/api.pb.h"
#include "support/census_fixture.h"
#include "support/controller_client.h"
#include "support/lab_parts.h"

extern char** environ;

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

constexpr std::chrono::seconds kPatience(20);

// The directory of the executables under test: as the test runner says, else the build tree's.
fs::path executable_dir() {
  if (const char* dir = std::getenv("KUASAR_LAB_BIN")) {
    return dir;
  }
  return fs::read_symlink("/proc/self/exe").parent_path().parent_path() / "bin";
}

// The environment of the daemon: the lab's OCI runtime comes first in PATH.
std::vector<std::string> daemon_environment(const fs::path& failpoints) {
  std::vector<std::string> variables = {"KUASAR_FAILPOINT_DIR=" + failpoints.native()};
  std::string path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
  for (char** variable = environ; *variable != nullptr; ++variable) {
    const std::string_view entry = *variable;
    if (entry.starts_with("PATH=")) {
      path = entry.substr(5);
    } else {
      variables.emplace_back(entry);
    }
  }
  if (const char* prefix = std::getenv("KUASAR_LAB_PREFIX")) {
    path = std::string(prefix) + "/usr/sbin:" + prefix + "/usr/bin:" + path;
  }
  variables.push_back("PATH=" + path);
  return variables;
}

std::vector<char*> pointers(const std::vector<std::string>& strings) {
  std::vector<char*> array;
  for (const std::string& string : strings) {
    array.push_back(const_cast<char*>(string.c_str()));
  }
  array.push_back(nullptr);
  return array;
}

fs::path failpoint_dir(const fs::path& scratch) {
  return scratch / "failpoints";
}

pid_t spawn(const std::vector<std::string>& arguments, const fs::path& output) {
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  ::posix_spawn_file_actions_addopen(&actions, 1, output.c_str(), O_WRONLY | O_CREAT | O_APPEND,
                                     0600);
  ::posix_spawn_file_actions_adddup2(&actions, 1, 2);
  const std::vector<std::string> environment =
      daemon_environment(failpoint_dir(output.parent_path()));
  pid_t pid = 0;
  const int error = ::posix_spawn(&pid, arguments.front().c_str(), &actions, nullptr,
                                  pointers(arguments).data(), pointers(environment).data());
  ::posix_spawn_file_actions_destroy(&actions);
  if (error != 0) {
    throw std::system_error(error, std::generic_category(), "spawn " + arguments.front());
  }
  return pid;
}

// Empty while the process runs.
std::optional<int> exit_code(pid_t pid) {
  int status = 0;
  if (::waitpid(pid, &status, WNOHANG) != pid) {
    return std::nullopt;
  }
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

// The mount points below a directory, the last mounted first.
std::vector<std::string> mounts_below(const fs::path& dir) {
  std::vector<std::string> points;
  std::ifstream mountinfo("/proc/self/mountinfo");
  std::string line;
  while (std::getline(mountinfo, line)) {
    std::istringstream fields(line);
    std::string skipped;
    std::string point;
    fields >> skipped >> skipped >> skipped >> skipped >> point;
    if (point == dir.native() || point.starts_with(dir.native() + "/")) {
      points.insert(points.begin(), point);
    }
  }
  return points;
}

// Processes whose cgroup lies below the tests' parent: what a failed case left running.
void kill_leftover_containers() {
  for (const fs::path& hierarchy : cgroup_hierarchies()) {
    std::error_code error;
    for (const auto& entry :
         fs::recursive_directory_iterator(hierarchy.native() + CgroupParent::path(), error)) {
      if (entry.path().filename() == "cgroup.procs") {
        std::istringstream pids(read_whole(entry.path()));
        pid_t pid = 0;
        while (pids >> pid) {
          ::kill(pid, SIGKILL);
        }
      }
    }
  }
}

json::object bind_mount(const std::string& path, const char* mode) {
  return {{"destination", path},
          {"type", "bind"},
          {"source", path},
          {"options", json::array{"rbind", mode}}};
}

std::string container_spec(const std::string& sandbox, const std::string& id,
                           const std::vector<std::string>& arguments) {
  json::array args;
  for (const std::string& argument : arguments) {
    args.emplace_back(argument);
  }
  json::array namespaces{json::object{{"type", "pid"}}, json::object{{"type", "mount"}}};
  // With the pid 0 that a pod without a process has, CRI writes these paths.
  for (const char* kind : {"ipc", "uts"}) {
    namespaces.push_back(json::object{{"type", kind}, {"path", std::string("/proc/0/ns/") + kind}});
  }
  namespaces.push_back(json::object{{"type", "network"}, {"path", "/proc/0/ns/net"}});
  const json::object spec{
      {"ociVersion", "1.0.2"},
      {"process", json::object{{"user", json::object{{"uid", 0}, {"gid", 0}}},
                               {"args", args},
                               {"env", json::array{"PATH=/usr/bin:/bin"}},
                               {"cwd", "/"},
                               {"noNewPrivileges", true}}},
      {"root", json::object{{"path", "rootfs"}}},
      {"mounts",
       json::array{json::object{{"destination", "/proc"},
                                {"type", "proc"},
                                {"source", "proc"},
                                {"options", json::array{"nosuid", "noexec", "nodev"}}},
                   json::object{{"destination", "/dev"},
                                {"type", "tmpfs"},
                                {"source", "tmpfs"},
                                {"options", json::array{"nosuid", "mode=755"}}},
                   json::object{{"destination", "/dev/pts"},
                                {"type", "devpts"},
                                {"source", "devpts"},
                                {"options", json::array{"nosuid", "newinstance", "ptmxmode=0666"}}},
                   bind_mount("/usr", "ro")}},
      {"annotations", json::object{{"io.kubernetes.cri.container-type", "container"},
                                   {"io.kubernetes.cri.sandbox-id", sandbox}}},
      {"linux",
       json::object{{"cgroupsPath", CgroupParent::path() + "/" + id}, {"namespaces", namespaces}}}};
  return json::serialize(spec);
}

// Of a daemon that has ended: it and its keeper are processes like others.
CensusScope last_scope(const LoneDaemon& daemon) {
  CensusScope scope;
  scope.dirs = {daemon.dir(), daemon.listen()};
  return scope;
}

// What stands in a --dir that stays mounted, and nothing below it. Of one that the daemon has
// unmounted the directory itself is left.
bool is_furniture(const std::string& line, const fs::path& dir) {
  const auto is = [&line](const std::string& path, const char* kind) {
    return line == "file " + path + kind;
  };
  return is(dir, " (directory)") || is(dir / "boot_id", "") || is(dir / "lock", "") ||
         is(dir / "starts", "") || is(dir / "crashed", "") || is(dir / "mounted", "") ||
         is(dir / "journal", " (directory)") || is(dir / "oci", " (directory)") ||
         is(dir / "pty", " (directory)") || is(dir / "sandboxes", " (directory)") ||
         is(dir / "ctl", " (directory)");
}

}  // namespace

LoneDaemon::LoneDaemon() {
  if (::geteuid() != 0) {
    SKIP("needs root");
  }
  std::string pattern = (fs::temp_directory_path() / "kuasar-hostile-XXXXXX").native();
  if (::mkdtemp(pattern.data()) == nullptr) {
    throw std::system_error(errno, std::generic_category(), "mkdtemp");
  }
  scratch_ = pattern;
  write_whole(config(), "");
  fs::create_directory(failpoint_dir(scratch_));
  before_ = Census::take_settled(last_scope(*this));
}

LoneDaemon::~LoneDaemon() {
  if (std::uncaught_exceptions() == 0) {
    try {
      end();
    } catch (const std::exception& error) {
      FAIL_CHECK(error.what());
    }
  }
  kill();
  kill_keeper();
  kill_leftover_containers();
  unmount_below(scratch_);
  std::error_code ignored;
  fs::remove_all(scratch_, ignored);
}

std::vector<std::string> LoneDaemon::arguments() const {
  return {"--listen",     listen().native(),
          "--dir",        dir().native(),
          "--config",     config().native(),
          "--log-level",  "debug",
          "--containerd", (scratch_ / "no-containerd.sock").native()};
}

void LoneDaemon::start() {
  std::vector<std::string> command = arguments();
  command.insert(command.begin(), (executable_dir() / "runc-sandboxer").native());
  const std::size_t before = count_lines(scratch_ / "output", " ready");
  pid_ = spawn(command, scratch_ / "output");
  std::optional<int> ended;
  const bool ready = eventually(
      [this, &ended, before] {
        ended = exit_code(pid_);
        return ended || count_lines(scratch_ / "output", " ready") > before;
      },
      kPatience);
  if (ended) {
    pid_ = 0;
    throw std::runtime_error("runc-sandboxer ended with " + std::to_string(*ended) + ":\n" +
                             output());
  }
  if (!ready) {
    throw std::runtime_error("runc-sandboxer does not get ready:\n" + output());
  }
}

Exited LoneDaemon::stop() {
  ::kill(pid_, SIGTERM);
  std::optional<int> code;
  if (!eventually([this, &code] { return (code = exit_code(pid_)).has_value(); }, kPatience)) {
    throw std::runtime_error("runc-sandboxer does not end at SIGTERM:\n" + output());
  }
  pid_ = 0;
  return {*code, output()};
}

void LoneDaemon::kill() {
  if (pid_ != 0) {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }
}

bool LoneDaemon::has_failpoints() const {
  return output().find("built with failpoints") != std::string::npos;
}

void LoneDaemon::arm(const std::string& failpoint, const std::string& action) const {
  write_whole(failpoint_dir(scratch_) / failpoint, action);
}

bool LoneDaemon::disarm(const std::string& failpoint) const {
  return fs::remove(failpoint_dir(scratch_) / failpoint);
}

bool LoneDaemon::died() {
  if (!eventually([this] { return exit_code(pid_).has_value(); }, kPatience)) return false;
  pid_ = 0;
  return true;
}

pid_t LoneDaemon::keeper() const {
  return lab_keeper(dir());
}

void LoneDaemon::kill_keeper() const {
  if (keeper() == 0) return;
  ::kill(keeper(), SIGKILL);
  if (!eventually([this] { return keeper() == 0; })) {
    throw std::runtime_error("the keeper does not end at SIGKILL");
  }
}

void LoneDaemon::end() {
  if (std::exchange(ended_, true)) return;
  if (pid_ != 0) {
    remove_pods();
    CHECK(stop().code == 0);
  }
  std::error_code none;
  const fs::path sandboxes = dir() / "sandboxes";
  // With a pod left to keep, the directory's mount, keeper and sockets stay by design.
  if (fs::exists(sandboxes, none) && !fs::is_empty(sandboxes, none)) {
    leaves("mount " + dir().native());
    kill_keeper();
    for (const fs::path& socket : {listen(), task_socket(), dir() / "keeper.sock"}) {
      fs::remove(socket, none);
    }
  }
  std::vector<std::string> left;
  eventually([this, &left] { return (left = remains()).empty(); });
  INFO("the case leaves behind:" << listed(left));
  CHECK(left.empty());
}

bool LoneDaemon::is_left_on_purpose(const std::string& line) const {
  return std::any_of(left_on_purpose_.begin(), left_on_purpose_.end(),
                     [&line](const std::string& part) { return line.find(part) != line.npos; });
}

void LoneDaemon::remove_pods() const {
  ControllerClient controller(listen());
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(dir() / "sandboxes", none)) {
    if (is_left_on_purpose(entry.path())) continue;
    const auto answer = controller.shutdown(entry.path().filename());
    INFO("Shutdown of " << entry.path() << ": " << answer.message);
    CHECK(answer.code == 0);
  }
}

std::vector<std::string> LoneDaemon::remains() const {
  std::vector<std::string> left = Census::diff(before_, Census::take(last_scope(*this)));
  std::erase_if(left, [this](const std::string& line) {
    return is_left_on_purpose(line) || is_furniture(line, dir());
  });
  return left;
}

bool LoneDaemon::alive() const {
  siginfo_t info{};
  return pid_ != 0 &&
         ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
         info.si_pid == 0;
}

std::string LoneDaemon::output() const {
  return read_whole(scratch_ / "output");
}

CensusScope LoneDaemon::scope() const {
  CensusScope scope;
  scope.daemon = pid_;
  scope.keeper = lab_keeper(dir());
  scope.dirs = {dir(), scratch_ / "bundles"};
  return scope;
}

Exited LoneDaemon::run_once(const std::vector<std::string>& arguments) const {
  std::vector<std::string> command = arguments;
  command.insert(command.begin(), (executable_dir() / "runc-sandboxer").native());
  const fs::path file = scratch_ / "output-once";
  fs::remove(file);
  const pid_t pid = spawn(command, file);
  std::optional<int> code;
  if (!eventually([pid, &code] { return (code = exit_code(pid)).has_value(); }, kPatience)) {
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
    code = 128 + SIGKILL;
  }
  return {*code, read_whole(file)};
}

std::vector<std::string> left_behind(const Census& before, const LoneDaemon& daemon) {
  std::vector<std::string> left;
  const bool equal = eventually([&] {
    left = Census::diff(before, Census::take(daemon.scope()));
    std::erase_if(left, [](const std::string& line) {
      return line.starts_with("file ") && line.ends_with("/tombstones.json");
    });
    return left.empty();
  });
  return equal ? std::vector<std::string>() : left;
}

containerd::services::sandbox::v1::ControllerCreateRequest pod_request(const std::string& id) {
  ::runtime::v1::PodSandboxConfig config;
  config.mutable_metadata()->set_name("hostile");
  config.mutable_metadata()->set_namespace_("default");
  config.mutable_metadata()->set_uid("1");
  config.mutable_linux()->set_cgroup_parent(CgroupParent::path());
  auto* namespaces =
      config.mutable_linux()->mutable_security_context()->mutable_namespace_options();
  namespaces->set_network(::runtime::v1::NODE);
  namespaces->set_pid(::runtime::v1::CONTAINER);

  containerd::services::sandbox::v1::ControllerCreateRequest request;
  request.set_sandbox_id(id);
  request.set_sandboxer("kuasar-runc");
  // The bare name, as containerd writes it.
  request.mutable_options()->set_type_url("runtime.v1.PodSandboxConfig");
  request.mutable_options()->set_value(config.SerializeAsString());
  request.mutable_sandbox()->set_sandbox_id(id);
  request.mutable_sandbox()->set_sandboxer("kuasar-runc");
  request.mutable_sandbox()->mutable_runtime()->set_name("io.containerd.runc.v2");
  return request;
}

containerd::task::v3::CreateTaskRequest task_request(const LoneDaemon& daemon,
                                                     const std::string& sandbox,
                                                     const std::string& id,
                                                     const std::vector<std::string>& arguments) {
  const fs::path bundle = daemon.scratch() / "bundles" / id;
  fs::create_directories(bundle / "rootfs");
  write_whole(bundle / "sandbox", sandbox);
  write_whole(bundle / "config.json", container_spec(sandbox, id, arguments));

  const fs::path image = daemon.scratch() / "image";
  for (const char* dir : {"proc", "sys", "dev", "etc", "tmp", "usr"}) {
    fs::create_directories(image / dir);
  }
  for (const char* link : {"bin", "sbin", "lib", "lib64"}) {
    std::error_code exists;
    fs::create_symlink(fs::path("usr") / link, image / link, exists);
  }

  containerd::task::v3::CreateTaskRequest request;
  request.set_id(id);
  request.set_bundle(bundle.native());
  auto* rootfs = request.add_rootfs();
  rootfs->set_type("bind");
  rootfs->set_source(image.native());
  rootfs->add_options("rbind");
  return request;
}

std::string CgroupParent::path() {
  return "/kuasar-hostile-" + std::to_string(::getpid());
}

CgroupParent::CgroupParent() {
  for (const fs::path& hierarchy : cgroup_hierarchies()) {
    fs::create_directory(hierarchy.native() + path());
  }
}

CgroupParent::~CgroupParent() {
  for (const fs::path& hierarchy : cgroup_hierarchies()) {
    const std::string top = hierarchy.native() + path();
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(top, ignored)) {
      if (entry.is_directory(ignored)) {
        ::rmdir(entry.path().c_str());
      }
    }
    eventually([&top] { return ::rmdir(top.c_str()) == 0 || errno != EBUSY; },
               std::chrono::seconds(2));
  }
}

void unmount_below(const fs::path& dir) {
  for (const std::string& point : mounts_below(dir)) {
    ::umount2(point.c_str(), MNT_DETACH);
  }
}

std::string read_whole(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

void write_whole(const fs::path& file, const std::string& content) {
  std::ofstream stream(file, std::ios::binary | std::ios::trunc);
  stream << content;
  if (!stream.flush()) {
    throw std::runtime_error("cannot write " + file.native());
  }
}

std::string listed(const std::vector<std::string>& lines) {
  std::string text;
  for (const std::string& line : lines) {
    text += "\n  " + line;
  }
  return text;
}

MemoryWatch::MemoryWatch(pid_t pid) : pid_(pid), before_kib_(read_kib("VmRSS:")) {}

long MemoryWatch::read_kib(const std::string& field) const {
  std::ifstream status("/proc/" + std::to_string(pid_) + "/status");
  std::string word;
  long kib = 0;
  while (status >> word) {
    if (word == field) {
      status >> kib;
      break;
    }
  }
  return kib;
}

long MemoryWatch::growth_mib() const {
  // AddressSanitizer reserves terabytes for its shadow and keeps freed memory back for a while.
  constexpr long kShadowKib = 1L << 30;
  constexpr long kQuarantineKib = 512L << 10;
  const long growth = read_kib("VmRSS:") - before_kib_;
  return std::max(0L, read_kib("VmSize:") > kShadowKib ? growth - kQuarantineKib : growth) / 1024;
}

void pause_briefly() {
  std::this_thread::sleep_for(std::chrono::milliseconds(10));
}

}  // namespace kuasar::test
