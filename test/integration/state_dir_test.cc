#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <cstdlib>
#include <filesystem>
#include <sstream>

#include "base/files.h"
#include "os/mount.h"
#include "os/namespaces.h"
#include "sandbox/remove_tree.h"
#include "sandbox/state_store.h"

namespace kuasar::sandbox {
namespace {

namespace fs = std::filesystem;

// Lines of mountinfo (proc(5)) of mounts on `path` or below it.
std::vector<std::string> mounts_at(const fs::path& path) {
  std::vector<std::string> found;
  std::istringstream lines(read_file("/proc/self/mountinfo").value());
  for (std::string line; std::getline(lines, line);) {
    std::istringstream fields(line);
    std::string field;
    for (int i = 0; i < 5; ++i) fields >> field;
    if (field == path.native() || field.rfind(path.native() + "/", 0) == 0) found.push_back(line);
  }
  return found;
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// An empty directory; every mount on it or below it ends with the test.
class MountDir {
 public:
  MountDir() {
    char name[] = "/tmp/kuasar-statedir-XXXXXX";
    REQUIRE(::mkdtemp(name) != nullptr);
    dir_ = name;
  }
  MountDir(const MountDir&) = delete;
  MountDir& operator=(const MountDir&) = delete;
  ~MountDir() {
    for (std::vector<std::string> left; !(left = mounts_at(dir_)).empty();) {
      std::istringstream fields(left.back());
      std::string field;
      for (int i = 0; i < 5; ++i) fields >> field;
      if (::umount2(field.c_str(), MNT_DETACH) != 0) break;
    }
    fs::remove_all(dir_);
  }
  const fs::path& path() const { return dir_; }

 private:
  fs::path dir_;
};

void need_root() {
  if (::geteuid() != 0) SKIP("mounting needs root");
}

void prepare(const fs::path& dir) {
  const Result<> prepared = prepare_state_dir(dir);
  INFO((prepared ? std::string() : prepared.error().message));
  REQUIRE(prepared);
}

StateStore opened(const fs::path& dir) {
  prepare(dir);
  Result<StateStore> store = StateStore::open(dir);
  INFO((store ? std::string() : store.error().message));
  REQUIRE(store);
  return *store;
}

state::v1::SandboxState running(const std::string& id) {
  state::v1::SandboxState state;
  state.set_id(id);
  state.set_phase(state::v1::SandboxState::RUNNING);
  return state;
}

}  // namespace

TEST_CASE("state dir: a private tmpfs is mounted once where there is none", "[root]") {
  need_root();
  const MountDir parent;
  const fs::path dir = parent.path() / "state";
  if (os::is_on_tmpfs(parent.path())) SKIP("/tmp is a tmpfs here");
  const mode_t old = ::umask(0777);
  prepare(dir);
  ::umask(old);
  for (int again = 0; again < 2; ++again) {
    const auto mounts = mounts_at(dir);
    REQUIRE(mounts.size() == 1);
    INFO(mounts[0]);
    CHECK(contains(mounts[0], "nosuid,nodev"));
    CHECK(contains(mounts[0], " - tmpfs kuasar "));
    CHECK_FALSE(contains(mounts[0], "shared:"));
    struct stat st {};
    REQUIRE(::stat(dir.c_str(), &st) == 0);
    CHECK((st.st_mode & 07777) == 0711);
    prepare(dir);
  }
  REQUIRE(StateStore::open(dir)->create_sandbox("a"));
  CHECK(opened(dir).load_sandboxes()->size() == 1);
  const StatePaths paths(dir);
  release_state_dir(paths);
  CHECK(mounts_at(dir).size() == 1);
  REQUIRE(opened(dir).remove_sandbox("a"));
  release_state_dir(paths);
  CHECK(mounts_at(dir).empty());
  CHECK(fs::is_empty(dir));
}

TEST_CASE("state dir: what somebody else has mounted stays mounted", "[root]") {
  need_root();
  const MountDir parent;
  const fs::path dir = parent.path() / "state";
  REQUIRE(make_dir(dir));
  REQUIRE(os::mount_tmpfs(dir, "somebody", 0755, 0, false));
  prepare(dir);
  release_state_dir(StatePaths(dir));
  CHECK(mounts_at(dir).size() == 1);
}

TEST_CASE("state dir: on somebody's shared tmpfs pins do not propagate", "[root]") {
  need_root();
  const MountDir parent;
  const fs::path run = parent.path() / "run";
  const fs::path peer = parent.path() / "peer";
  REQUIRE(make_dir(run));
  REQUIRE(make_dir(peer));
  REQUIRE(os::mount_tmpfs(run, "somebody", 0755, 0, false));
  REQUIRE(os::mount("", run, "", MS_SHARED, ""));
  REQUIRE(os::bind_mount(run, peer));
  const StateStore store = opened(run / "state");
  const auto mounts = mounts_at(run / "state");
  REQUIRE(mounts.size() == 1);
  // D2: what fills our state does not fill somebody's tmpfs.
  CHECK(contains(mounts[0], " - tmpfs kuasar "));
  CHECK(contains(mounts[0], "size="));
  CHECK_FALSE(contains(mounts[0], "shared:"));
  prepare(run / "state");
  CHECK(mounts_at(run / "state").size() == 1);

  const std::size_t before = mounts_at(peer).size();
  REQUIRE(store.create_sandbox("a"));
  os::PodNamespacePlan plan;
  plan.ipc_pin = store.paths().namespace_pin("a", "ipc");
  REQUIRE(os::make_pod_namespaces(plan));
  CHECK(mounts_at(run / "state").size() == 2);
  CHECK(mounts_at(peer).size() == before);
  CHECK(os::remove_pin(plan.ipc_pin));
  CHECK(store.remove_sandbox("a"));
}

TEST_CASE("state dir: a slip of --dir mounts nothing over somebody's files", "[root]") {
  need_root();
  const MountDir parent;
  REQUIRE(write_file(parent.path() / "passwd", "precious"));
  const Result<> prepared = prepare_state_dir(parent.path());
  REQUIRE_FALSE(prepared);
  CHECK(prepared.error().code == Code::kFailedPrecondition);
  CHECK(mounts_at(parent.path()).empty());
  CHECK(*read_file(parent.path() / "passwd") == "precious");
}

TEST_CASE("state dir: a full tmpfs is an error in words and loses nothing", "[root]") {
  need_root();
  const MountDir parent;
  const fs::path dir = parent.path();
  REQUIRE(os::mount_tmpfs(dir, "kuasar", 0711, 256 * 1024, false));
  const StateStore store = opened(dir);
  REQUIRE(store.create_sandbox("a"));
  REQUIRE(store.save_sandbox(running("a")));
  REQUIRE_FALSE(write_file(dir / "lock", std::string(1 << 20, 'x')));

  state::v1::SandboxState changed = running("a");
  changed.set_phase(state::v1::SandboxState::STOPPED);
  changed.set_netns_path(std::string(16384, 'n'));
  for (const Result<>& result :
       {store.save_sandbox(changed),
        store.create_sandbox("b").and_then([&] { return store.save_sandbox(running("b")); })}) {
    REQUIRE_FALSE(result);
    INFO(result.error().message);
    CHECK(result.error().code == Code::kResourceExhausted);
    CHECK(contains(result.error().message, dir.native() + " is full"));
    CHECK(contains(result.error().message, "remove pods"));
  }
  const auto all = store.load_sandboxes();
  REQUIRE(all);
  REQUIRE_FALSE(all->empty());
  REQUIRE(all->front().state);
  CHECK(all->front().state->phase() == state::v1::SandboxState::RUNNING);

  // Room again: everything works again.
  REQUIRE(write_file(dir / "lock", ""));
  CHECK(store.save_sandbox(changed));
  CHECK(store.remove_sandbox("a"));
  CHECK(store.remove_sandbox("b"));
  CHECK(store.load_sandboxes()->empty());
}

TEST_CASE("state dir: removal never enters a mount and can be repeated", "[root]") {
  need_root();
  const MountDir parent;
  const StateStore store = opened(parent.path() / "state");
  const StatePaths& paths = store.paths();
  REQUIRE(store.create_sandbox("a"));
  REQUIRE(store.save_sandbox(running("a")));
  REQUIRE(store.create_container("a", "c"));
  REQUIRE(os::mount_tmpfs(paths.shm("a"), "shm", 01777, 1 << 20, true));
  REQUIRE(write_file(paths.shm("a") / "segment", "x"));
  // A bind mount of the same filesystem has the same device number.
  const fs::path outside = parent.path() / "state" / "sandboxes" / "outside";
  REQUIRE(make_dir(outside));
  REQUIRE(write_file(outside / "precious", "x"));
  REQUIRE(make_dir(paths.files("a") / "bound"));
  REQUIRE(os::bind_mount(outside, paths.files("a") / "bound"));
  REQUIRE(write_file(paths.files("a") / "hosts", "x"));
  REQUIRE(os::bind_mount(outside / "precious", paths.files("a") / "hosts"));

  const Result<> removed = store.remove_sandbox("a");
  REQUIRE_FALSE(removed);
  INFO(removed.error().message);
  CHECK(removed.error().code == Code::kFailedPrecondition);
  CHECK(contains(removed.error().message, "is still a mount point"));
  CHECK(fs::exists(paths.shm("a") / "segment"));
  CHECK(fs::exists(outside / "precious"));
  CHECK_FALSE(fs::exists(paths.containers("a")));
  CHECK(store.load_sandboxes()->front().state);

  REQUIRE(os::unmount_all(paths.shm("a")));
  REQUIRE(os::unmount_all(paths.files("a") / "bound"));
  REQUIRE(os::unmount_all(paths.files("a") / "hosts"));
  CHECK(store.remove_sandbox("a"));
  CHECK_FALSE(fs::exists(paths.sandbox("a")));
  CHECK(fs::exists(outside / "precious"));
}

}  // namespace kuasar::sandbox
