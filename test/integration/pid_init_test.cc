#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <functional>
#include <sstream>
#include <thread>

#include "base/files.h"
#include "os/pidfd.h"
#include "os/spawn.h"

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

// Beside the tests in every build tree: <build>/test/<tests> and <build>/bin/kuasar-pid-init.
std::string pid_init_program() {
  const fs::path tests = fs::read_symlink("/proc/self/exe");
  return tests.parent_path().parent_path() / "bin" / "kuasar-pid-init";
}

bool within(milliseconds limit, const std::function<bool()>& condition) {
  const auto deadline = steady_clock::now() + limit;
  while (!condition()) {
    if (steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(milliseconds(2));
  }
  return true;
}

std::string proc(pid_t pid, const std::string& name) {
  return fmt::format("/proc/{}/{}", pid, name);
}

std::string link_of(const std::string& path) {
  return fs::read_symlink(path).native();
}

// The words behind "<field>:" of /proc/PID/status.
std::vector<std::string> status_of(pid_t pid, const std::string& field) {
  std::istringstream lines(read_file(proc(pid, "status")).value_or(""));
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind(field + ":", 0) != 0) continue;
    std::istringstream words(line.substr(field.size() + 1));
    std::vector<std::string> all;
    for (std::string word; words >> word;) all.push_back(word);
    return all;
  }
  return {};
}

std::vector<pid_t> children_of(pid_t parent) {
  std::vector<pid_t> found;
  for (const auto& entry : fs::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    const pid_t pid = static_cast<pid_t>(std::stol(name));
    const auto words = status_of(pid, "PPid");
    if (!words.empty() && words[0] == std::to_string(parent)) found.push_back(pid);
  }
  return found;
}

struct PodNamespaces {
  UniqueFd ipc;
  UniqueFd uts;
  UniqueFd net;
};

PodNamespaces make_namespaces() {
  PodNamespaces pod;
  std::thread([&pod] {
    if (::unshare(CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET) != 0) return;
    pod.ipc.reset(::open("/proc/thread-self/ns/ipc", O_RDONLY | O_CLOEXEC));
    pod.uts.reset(::open("/proc/thread-self/ns/uts", O_RDONLY | O_CLOEXEC));
    pod.net.reset(::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
  }).join();
  return pod;
}

// Starts the program as the daemon does and ends it with the test.
class PidInit {
 public:
  explicit PidInit(const std::vector<int>& namespaces) {
    int ends[2];
    REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
    UniqueFd reader(ends[0]);
    UniqueFd writer(ends[1]);
    os::ProcessSpec spec;
    spec.program = pid_init_program();
    spec.argv = {"kuasar-pid-init", std::to_string(namespaces.size())};
    spec.env = {"SECRET=very"};
    spec.new_pid_namespace = true;
    spec.new_mount_namespace = true;
    spec.fds.push_back({writer.get(), 3});
    for (std::size_t i = 0; i < namespaces.size(); ++i) {
      spec.fds.push_back({namespaces[i], static_cast<int>(4 + i)});
    }
    Result<os::Spawned> spawned = os::spawn_process(spec);
    INFO((spawned ? std::string() : spawned.error().message));
    REQUIRE(spawned);
    child_ = std::move(*spawned);
    writer.reset();
    char buffer[512];
    pollfd poll_fd{reader.get(), POLLIN, 0};
    while (::poll(&poll_fd, 1, 5000) == 1) {
      const ssize_t n = ::read(reader.get(), buffer, sizeof buffer);
      if (n <= 0) break;
      said_.append(buffer, static_cast<std::size_t>(n));
    }
  }
  PidInit(const PidInit&) = delete;
  PidInit& operator=(const PidInit&) = delete;
  ~PidInit() {
    if (child_.pid <= 0) return;
    (void)os::pidfd_signal(child_.pidfd.get(), SIGKILL);
    (void)wait();
  }

  pid_t pid() const { return child_.pid; }
  int pidfd() const { return child_.pidfd.get(); }
  const std::string& said() const { return said_; }
  siginfo_t wait() {
    siginfo_t info{};
    while (::waitid(P_PID, static_cast<id_t>(child_.pid), &info, WEXITED) != 0 && errno == EINTR) {
    }
    child_.pid = -1;
    return info;
  }

 private:
  os::Spawned child_;
  std::string said_;
};

// Runs in a child of the test: enters the PID namespace, starts `count` orphans there and ends.
// Each orphan's parent has ended before it, so that it falls to PID 1.
[[noreturn]] void inject_orphans(int pid_namespace, int count, bool stay) {
  if (::setns(pid_namespace, CLONE_NEWPID) != 0) ::_exit(1);
  for (int i = 0; i < count; ++i) {
    const pid_t inside = ::fork();
    if (inside < 0) ::_exit(2);
    if (inside == 0) {
      const pid_t orphan = ::fork();
      if (orphan != 0) ::_exit(orphan < 0 ? 3 : 0);
      if (stay) {
        for (;;) ::pause();
      }
      ::_exit(0);
    }
    int status = 0;
    if (::waitpid(inside, &status, 0) != inside || status != 0) ::_exit(4);
  }
  ::_exit(0);
}

void run_injector(pid_t init, int count, bool stay) {
  const UniqueFd pid_namespace(::open(proc(init, "ns/pid").c_str(), O_RDONLY | O_CLOEXEC));
  REQUIRE(pid_namespace);
  const pid_t injector = ::fork();
  REQUIRE(injector >= 0);
  if (injector == 0) inject_orphans(pid_namespace.get(), count, stay);
  int status = 0;
  REQUIRE(::waitpid(injector, &status, 0) == injector);
  REQUIRE(status == 0);
}

void need_root() {
  if (::geteuid() != 0) SKIP("namespaces need root");
}

}  // namespace

TEST_CASE("pid-init: it shows nothing of the host and has no rights", "[root]") {
  need_root();
  const PodNamespaces pod = make_namespaces();
  REQUIRE(pod.net);
  const PidInit init({pod.ipc.get(), pod.uts.get(), pod.net.get()});
  REQUIRE(init.said() == "R");
  const pid_t pid = init.pid();

  const std::string root = proc(pid, "root") + "/";
  CHECK(fs::is_empty(root));
  CHECK(fs::read_symlink(proc(pid, "cwd")) == fs::path("/"));
  struct statvfs root_fs {};
  REQUIRE(::statvfs(root.c_str(), &root_fs) == 0);
  CHECK((root_fs.f_flag & ST_RDONLY) != 0);
  const std::string mounts = read_file(proc(pid, "mountinfo")).value();
  INFO(mounts);
  CHECK(std::count(mounts.begin(), mounts.end(), '\n') == 1);
  CHECK(mounts.find(" / / ro,nosuid,nodev,noexec") != std::string::npos);
  CHECK(mounts.find("shared:") == std::string::npos);

  const std::vector<std::string> nobody(4, "65534");
  CHECK(status_of(pid, "Uid") == nobody);
  CHECK(status_of(pid, "Gid") == nobody);
  CHECK(status_of(pid, "Groups").empty());
  for (const char* set : {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"}) {
    INFO(set);
    CHECK(status_of(pid, set) == std::vector<std::string>{"0000000000000000"});
  }
  CHECK(status_of(pid, "NoNewPrivs") == std::vector<std::string>{"1"});
  CHECK(status_of(pid, "NSpid") == std::vector<std::string>{std::to_string(pid), "1"});
  CHECK(status_of(pid, "Threads") == std::vector<std::string>{"1"});
  CHECK(::getsid(pid) == pid);
  struct stat st {};
  REQUIRE(::stat(proc(pid, "mem").c_str(), &st) == 0);
  CHECK(st.st_uid == 0);

  CHECK(within(milliseconds(2000), [&] { return fs::is_empty(proc(pid, "fd")); }));
  const std::string cmdline = read_file(proc(pid, "cmdline")).value();
  CHECK(cmdline.find('/') == std::string::npos);
  CHECK(std::string(cmdline.c_str()) == "kuasar-pid-init");
  CHECK(cmdline.find_first_not_of('\0', 15) == std::string::npos);
  CHECK(read_file(proc(pid, "environ")).value().find("very") == std::string::npos);
  CHECK(read_file(proc(pid, "comm")).value() == "kuasar-pid-init\n");

  for (const auto& [name, fd] : {std::pair{"ipc", pod.ipc.get()}, std::pair{"uts", pod.uts.get()},
                                 std::pair{"net", pod.net.get()}}) {
    CHECK(link_of(proc(pid, "ns/") + name) == link_of(fmt::format("/proc/self/fd/{}", fd)));
  }
  CHECK(link_of(proc(pid, "ns/pid")) != link_of("/proc/self/ns/pid"));
  CHECK(link_of(proc(pid, "ns/mnt")) != link_of("/proc/self/ns/mnt"));
}

TEST_CASE("pid-init: it reaps orphans that die at once and later", "[root]") {
  need_root();
  const PidInit init({});
  REQUIRE(init.said() == "R");
  run_injector(init.pid(), 50, false);
  CHECK(within(milliseconds(5000), [&] { return children_of(init.pid()).empty(); }));

  run_injector(init.pid(), 3, true);
  const std::vector<pid_t> orphans = children_of(init.pid());
  REQUIRE(orphans.size() == 3);
  for (const pid_t orphan : orphans) REQUIRE(::kill(orphan, SIGKILL) == 0);
  CHECK(within(milliseconds(5000), [&] { return children_of(init.pid()).empty(); }));
  CHECK_FALSE(os::pidfd_exited(init.pidfd()));
}

TEST_CASE("pid-init: only SIGKILL ends it, and then its namespace", "[root]") {
  need_root();
  PidInit init({});
  REQUIRE(init.said() == "R");
  for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGCHLD, SIGPIPE, SIGSEGV}) {
    REQUIRE(os::pidfd_signal(init.pidfd(), signal));
  }
  run_injector(init.pid(), 1, true);
  const std::vector<pid_t> orphans = children_of(init.pid());
  REQUIRE(orphans.size() == 1);
  const Result<UniqueFd> orphan = os::pidfd_open(orphans[0]);
  REQUIRE(orphan);
  CHECK_FALSE(os::pidfd_exited(init.pidfd()));

  REQUIRE(os::pidfd_signal(init.pidfd(), SIGKILL));
  const siginfo_t info = init.wait();
  CHECK(info.si_code == CLD_KILLED);
  CHECK(info.si_status == SIGKILL);
  CHECK(within(milliseconds(2000), [&] { return os::pidfd_exited(orphan->get()); }));
}

TEST_CASE("pid-init: what it cannot do it says in words", "[root]") {
  need_root();
  const UniqueFd no_namespace(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  PidInit init({no_namespace.get()});
  CHECK(init.said() == "pid-init cannot join a namespace of the pod: Invalid argument\n");
  const siginfo_t info = init.wait();
  CHECK(info.si_code == CLD_EXITED);
  CHECK(info.si_status == 1);
}

TEST_CASE("pid-init: started by hand it explains itself and does nothing") {
  int ends[2];
  REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
  UniqueFd reader(ends[0]);
  UniqueFd writer(ends[1]);
  os::ProcessSpec spec;
  spec.argv = {pid_init_program(), "0"};
  spec.fds = {{writer.get(), 2}};
  const Result<os::Spawned> spawned = os::spawn_process(spec);
  REQUIRE(spawned);
  writer.reset();
  char buffer[512] = {};
  REQUIRE(::read(reader.get(), buffer, sizeof buffer - 1) > 0);
  CHECK(std::string(buffer).find("not by hand") != std::string::npos);
  int status = 0;
  REQUIRE(::waitpid(spawned->pid, &status, 0) == spawned->pid);
  CHECK(WEXITSTATUS(status) == 64);
}

}  // namespace kuasar::test
