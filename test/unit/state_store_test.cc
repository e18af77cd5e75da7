#include "sandbox/state_store.h"

#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <csignal>
#include <cstdlib>
#include <filesystem>

#include "base/files.h"
#include "sandbox/remove_tree.h"

namespace kuasar::sandbox {
namespace {

namespace fs = std::filesystem;

class StateDir {
 public:
  StateDir() {
    char name[] = "/tmp/kuasar-state-XXXXXX";
    REQUIRE(::mkdtemp(name) != nullptr);
    dir_ = name;
  }
  StateDir(const StateDir&) = delete;
  StateDir& operator=(const StateDir&) = delete;
  ~StateDir() { fs::remove_all(dir_); }
  const fs::path& path() const { return dir_; }
  StateStore open() const {
    Result<StateStore> store = StateStore::open(dir_);
    INFO((store ? std::string() : store.error().message));
    REQUIRE(store);
    return *store;
  }

 private:
  fs::path dir_;
};

state::v1::SandboxState sandbox_state(const std::string& id) {
  state::v1::SandboxState state;
  state.set_id(id);
  state.set_phase(state::v1::SandboxState::RUNNING);
  state.set_netns_path("/run/netns/x");
  state.mutable_config()->mutable_metadata()->set_name("pod \xc3\xa9\n");
  (*state.mutable_config()->mutable_linux()->mutable_sysctls())["net.x"] = "1";
  state.mutable_created_at()->set_seconds(-62135596800);
  state.mutable_pid_init()->set_start_time(18446744073709551615ULL);
  return state;
}

state::v1::ContainerState container_state(const std::string& sandbox_id, const std::string& id) {
  state::v1::ContainerState state;
  state.set_id(id);
  state.set_sandbox_id(sandbox_id);
  state.set_phase(state::v1::ContainerState::CREATING);
  state.add_cgroups("/sys/fs/cgroup/x");
  return state;
}

mode_t mode_of(const fs::path& path) {
  struct stat st {};
  REQUIRE(::lstat(path.c_str(), &st) == 0);
  return st.st_mode & 07777;
}

std::vector<std::string> ids_of(const std::vector<LoadedSandbox>& all) {
  std::vector<std::string> ids;
  for (const LoadedSandbox& one : all) ids.push_back(one.id);
  return ids;
}

}  // namespace

TEST_CASE("state store: the tree has the modes of the drawing whatever the umask") {
  const StateDir dir;
  const mode_t old = ::umask(0);
  const StateStore store = dir.open();
  REQUIRE(store.create_sandbox("a"));
  REQUIRE(store.create_container("a", "c"));
  REQUIRE(store.save_sandbox(sandbox_state("a")));
  REQUIRE(store.save_container(container_state("a", "c")));
  ::umask(old);
  const StatePaths& paths = store.paths();
  CHECK(mode_of(paths.sandboxes()) == 0711);
  CHECK(mode_of(paths.runtime_root()) == 0700);
  CHECK(mode_of(paths.sandbox("a")) == 0700);
  CHECK(mode_of(paths.namespaces("a")) == 0700);
  CHECK(mode_of(paths.files("a")) == 0711);
  CHECK(mode_of(paths.containers("a")) == 0700);
  CHECK(mode_of(paths.container("a", "c")) == 0700);
  CHECK(mode_of(paths.sandbox_file("a")) == 0600);
  CHECK(mode_of(paths.container_file("a", "c")) == 0600);
}

TEST_CASE("state store: what is saved is loaded, by a second store too") {
  const StateDir dir;
  {
    const StateStore store = dir.open();
    for (const std::string id : {"b", "a"}) {
      REQUIRE(store.create_sandbox(id));
      REQUIRE(store.save_sandbox(sandbox_state(id)));
    }
    REQUIRE(store.create_container("a", "c1"));
    REQUIRE(store.save_container(container_state("a", "c1")));
  }
  const StateStore store = dir.open();
  const auto sandboxes = store.load_sandboxes();
  REQUIRE(sandboxes);
  CHECK(ids_of(*sandboxes) == std::vector<std::string>{"a", "b"});
  for (const LoadedSandbox& one : *sandboxes) {
    REQUIRE(one.state);
    CHECK_FALSE(one.problem);
    CHECK(one.state->header().min_reader() == kStateMinReader);
    CHECK_FALSE(one.state->header().written_by().empty());
    state::v1::SandboxState bare = *one.state;
    bare.clear_header();
    CHECK(bare.SerializeAsString() == sandbox_state(one.id).SerializeAsString());
  }
  const auto containers = store.load_containers("a");
  REQUIRE(containers);
  REQUIRE(containers->size() == 1);
  CHECK(containers->front().state->cgroups(0) == "/sys/fs/cgroup/x");
  CHECK(store.load_containers("b")->empty());
  CHECK(store.load_containers("unknown")->empty());
}

TEST_CASE("state store: hostile ids never become a path") {
  const StateDir dir;
  const StateStore store = dir.open();
  const std::string nul("a\0b", 3);
  for (const std::string& id :
       {std::string(), std::string("."), std::string(".."), std::string("a/b"), std::string("../x"),
        std::string(10240, 'a'), nul, std::string("a\n")}) {
    CHECK(store.create_sandbox(id).error().code == Code::kInvalidArgument);
    CHECK(store.save_sandbox(sandbox_state(id)).error().code == Code::kInvalidArgument);
    CHECK(store.remove_sandbox(id).error().code == Code::kInvalidArgument);
    CHECK(store.load_containers(id).error().code == Code::kInvalidArgument);
    CHECK(store.create_container("a", id).error().code == Code::kInvalidArgument);
    CHECK(store.create_container(id, "a").error().code == Code::kInvalidArgument);
    CHECK(store.save_container(container_state("a", id)).error().code == Code::kInvalidArgument);
    CHECK(store.remove_container("a", id).error().code == Code::kInvalidArgument);
  }
  CHECK(store.load_sandboxes()->empty());
}

TEST_CASE("state store: creating twice, saving without creating, removing twice") {
  const StateDir dir;
  const StateStore store = dir.open();
  REQUIRE(store.create_sandbox("a"));
  CHECK(store.create_sandbox("a").error().code == Code::kAlreadyExists);
  CHECK(store.save_sandbox(sandbox_state("ghost")).error().code == Code::kNotFound);
  CHECK(store.create_container("ghost", "c").error().code == Code::kNotFound);
  REQUIRE(store.create_container("a", "c"));
  CHECK(store.create_container("a", "c").error().code == Code::kAlreadyExists);
  CHECK(store.remove_container("a", "c"));
  CHECK(store.remove_container("a", "c"));
  CHECK(store.remove_container("ghost", "c"));
  CHECK(store.remove_sandbox("a"));
  CHECK(store.remove_sandbox("a"));
  CHECK(store.load_sandboxes()->empty());
}

TEST_CASE("state store: half-written, foreign and later files are told apart and stay") {
  const StateDir dir;
  const StateStore store = dir.open();
  const StatePaths& paths = store.paths();
  const auto put = [&](const std::string& id, const std::string& json) {
    REQUIRE(store.create_sandbox(id));
    REQUIRE(write_file(paths.sandbox_file(id), json));
  };
  REQUIRE(store.create_sandbox("a-unsaved"));
  put("b-empty", "");
  put("c-half", R"({"header":{"min_reader":1},"id":"c-ha)");
  put("d-array", "[]");
  put("e-no-header", R"({"id":"e-no-header","phase":"RUNNING"})");
  put("f-other-id", R"({"header":{"min_reader":1},"id":"x","phase":"RUNNING"})");
  put("g-phase", R"({"header":{"min_reader":1},"id":"g-phase","phase":"LEVITATING"})");
  put("h-later", R"({"header":{"min_reader":7,"written_by":"9.1.0","x":[1]},"id":{"now":"an"},)"
                 R"("phase":["other","schema"]})");
  put("i-extra", R"({"header":{"min_reader":1,"written_by":"9.0"},"id":"i-extra",)"
                 R"("phase":"STOPPED","new_field":{"a":[1,2]},"config":{"brand_new":1}})");
  put("j-deep", std::string(100000, '['));
  put("k-huge-reader", R"({"header":{"min_reader":99999999999999999999},"id":"k"})");
  put("l-negative", R"({"header":{"min_reader":-1},"id":"l-negative","phase":"RUNNING"})");

  const auto all = store.load_sandboxes();
  REQUIRE(all);
  REQUIRE(all->size() == 12);
  using Kind = StateProblem::Kind;
  for (const LoadedSandbox& one : *all) {
    INFO(one.id << ": " << (one.problem ? one.problem->words : "fine"));
    CHECK(one.state.has_value() != one.problem.has_value());
    CHECK(one.state.has_value() == (one.id == "i-extra"));
    if (one.problem) {
      const Kind wanted = one.id == "a-unsaved" ? Kind::kUnsaved
                          : one.id == "h-later" ? Kind::kNeedsNewer
                                                : Kind::kCorrupt;
      CHECK(one.problem->kind == wanted);
      CHECK(one.problem->words.find("sandbox.json") != std::string::npos);
    }
    CHECK(fs::exists(paths.sandbox(one.id)));
  }
  const StateProblem& later = *(*all)[7].problem;
  CHECK(later.min_reader == 7);
  CHECK(later.written_by == "9.1.0");
  CHECK(later.words.find("9.1.0") != std::string::npos);
  CHECK((*all)[8].state->phase() == state::v1::SandboxState::STOPPED);
}

TEST_CASE("state store: a container file of another sandbox is corrupt") {
  const StateDir dir;
  const StateStore store = dir.open();
  REQUIRE(store.create_sandbox("a"));
  REQUIRE(store.create_container("a", "c"));
  REQUIRE(write_file(store.paths().container_file("a", "c"),
                     R"({"header":{"min_reader":1},"id":"c","sandbox_id":"b","phase":"RUNNING"})"));
  const auto all = store.load_containers("a");
  REQUIRE(all);
  REQUIRE(all->front().problem);
  CHECK(all->front().problem->kind == StateProblem::Kind::kCorrupt);
}

TEST_CASE("state store: temporaries of a crash go, strangers stay and are no sandbox") {
  const StateDir dir;
  {
    const StateStore store = dir.open();
    REQUIRE(store.create_sandbox("a"));
    REQUIRE(store.save_sandbox(sandbox_state("a")));
    REQUIRE(store.create_container("a", "c"));
    REQUIRE(store.save_container(container_state("a", "c")));
  }
  const StatePaths paths(dir.path());
  const fs::path temps[] = {dir.path() / ".tmp-boot_id", paths.sandbox("a") / ".tmp-sandbox.json",
                            paths.files("a") / ".tmp-hosts",
                            paths.container("a", "c") / ".tmp-container.json"};
  for (const fs::path& temp : temps) REQUIRE(write_file(temp, "{"));
  REQUIRE(write_file(paths.sandboxes() / "a-file", "x"));
  REQUIRE(make_dir(paths.sandboxes() / "bad id"));
  fs::create_directory_symlink("/etc", paths.sandboxes() / "link");
  const StateStore store = dir.open();
  CHECK(ids_of(*store.load_sandboxes()) == std::vector<std::string>{"a"});
  CHECK(store.load_containers("a")->size() == 1);
  for (const fs::path& temp : temps) CHECK_FALSE(fs::exists(temp));
  CHECK(fs::exists(paths.sandboxes() / "a-file"));
  CHECK(fs::exists(paths.sandboxes() / "bad id"));
  CHECK(fs::is_symlink(paths.sandboxes() / "link"));
}

TEST_CASE("state store: another boot's tree is removed whole, this boot's stays") {
  const StateDir dir;
  const StatePaths paths(dir.path());
  {
    const StateStore store = dir.open();
    REQUIRE(store.create_sandbox("a"));
    REQUIRE(store.save_sandbox(sandbox_state("a")));
  }
  CHECK(dir.open().load_sandboxes()->size() == 1);
  const std::string own = *read_file(paths.boot_id());
  REQUIRE(write_file(paths.boot_id(), "11111111-2222-3333-4444-555555555555\n"));
  REQUIRE(write_file(paths.lock(), "1\n"));
  REQUIRE(write_file(dir.path() / "later-addition", "x"));
  const StateStore store = dir.open();
  CHECK(store.load_sandboxes()->empty());
  CHECK(*read_file(paths.boot_id()) == own);
  CHECK(fs::exists(paths.lock()));
  CHECK_FALSE(fs::exists(dir.path() / "later-addition"));
}

TEST_CASE("state store: a directory with somebody else's files is refused") {
  const StateDir dir;
  REQUIRE(write_file(dir.path() / "passwd", "x"));
  const auto store = StateStore::open(dir.path());
  REQUIRE_FALSE(store);
  CHECK(store.error().code == Code::kFailedPrecondition);
  CHECK(store.error().message.find("passwd") != std::string::npos);
  CHECK(store.error().message.find("--dir") != std::string::npos);
  CHECK(fs::exists(dir.path() / "passwd"));
  CHECK_FALSE(fs::exists(dir.path() / "sandboxes"));

  CHECK(StateStore::open("relative").error().code == Code::kInvalidArgument);
  CHECK(StateStore::open("/").error().code == Code::kInvalidArgument);
  CHECK(StateStore::open(dir.path() / "no" / "parent").error().message.find("parent") !=
        std::string::npos);
  CHECK(StateStore::open(dir.path() / "passwd").error().code == Code::kFailedPrecondition);
}

TEST_CASE("state store: a failed save leaves the earlier content and no temporary") {
  const StateDir dir;
  const StateStore store = dir.open();
  REQUIRE(store.create_sandbox("a"));
  REQUIRE(store.save_sandbox(sandbox_state("a")));
  const std::string before = *read_file(store.paths().sandbox_file("a"));
  struct rlimit old {};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &old) == 0);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  const struct rlimit tiny { 16, old.rlim_max };
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &tiny) == 0);
  const Result<> saved = store.save_sandbox(sandbox_state("a"));
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &old) == 0);
  std::signal(SIGXFSZ, old_handler);
  CHECK_FALSE(saved);
  CHECK(*read_file(store.paths().sandbox_file("a")) == before);
  CHECK(store.load_sandboxes()->front().state);
  for (const auto& entry : fs::directory_iterator(store.paths().sandbox("a"))) {
    CHECK(entry.path().filename().native().rfind(kTempPrefix, 0) != 0);
  }
}

TEST_CASE("remove_tree: deep trees go, symbolic links are not followed") {
  const StateDir dir;
  const fs::path victim = dir.path() / "victim";
  const fs::path tree = dir.path() / "tree";
  fs::create_directories(victim);
  REQUIRE(write_file(victim / "precious", "x"));
  fs::create_directories(tree / "a/b/c/d");
  REQUIRE(write_file(tree / "a/b/c/file", "x"));
  fs::create_directory_symlink(victim, tree / "a/link");
  fs::create_directory_symlink(victim, tree / "link");
  REQUIRE(::mkfifo((tree / "fifo").c_str(), 0600) == 0);
  CHECK(remove_tree(tree));
  CHECK_FALSE(fs::exists(tree));
  CHECK(fs::exists(victim / "precious"));
  CHECK(remove_tree(tree));
  CHECK(remove_tree(dir.path() / "no/such/thing"));

  fs::create_directory_symlink(victim, dir.path() / "top-link");
  CHECK(remove_tree(dir.path() / "top-link"));
  CHECK(fs::exists(victim / "precious"));
}

}  // namespace kuasar::sandbox
