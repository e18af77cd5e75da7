#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "e2e/many_pods.h"
#include "e2e/table.h"
#include "support/wait.h"

// The failure matrix: who dies (victim), when (a Task method of one container, before its effect,
// with its effect done, with its answer sent, with its OCI runtime running or just ended), among
// how many pods. Moments are failpoints of the daemon, so that the tests are skipped without them.

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

constexpr std::chrono::seconds kPatience(40);

enum class Victim { kDaemon, kKeeper, kBoth, kContainerd, kWorkload, kRuntime, kDiskFull };

const char* name_of(Victim victim) {
  switch (victim) {
    case Victim::kDaemon: return "daemon";
    case Victim::kKeeper: return "keeper";
    case Victim::kBoth: return "both";
    case Victim::kContainerd: return "containerd";
    case Victim::kWorkload: return "workload";
    case Victim::kRuntime: return "OCI runtime";
    case Victim::kDiskFull: return "daemon, disk full";
  }
  return "?";
}

/// What makes containerd call the method.
enum class By { kStart, kStop, kExec };

struct Method {
  const char* name;
  By by;
  /// The verb of the OCI runtime that it executes, if any.
  const char* verb = nullptr;
};

// Start and Delete are called for an init and for an exec, which are not the same code.
constexpr Method kMethods[] = {
    {"Create", By::kStart, "create"},
    {"Start", By::kStart},
    {"Wait", By::kStop},
    {"Connect", By::kStart},
    {"State", By::kStop},
    {"Kill", By::kStop},
    {"Delete", By::kStop, "delete"},
    {"Exec", By::kExec},
    {"Start", By::kExec, "exec"},
    {"Wait", By::kExec},
    {"Delete", By::kExec},
};
constexpr const char* kMoments[] = {"before", "done", "answered"};
// Of the runtime's process.
constexpr const char* kRuntimeMoments[] = {"spawned", "ended"};
// Of a start, for which runc is not run: its init is stopped, the reader of its FIFO is held, the
// init goes on, its byte is there (oci/exec_fifo.h).
constexpr const char* kFifoMoments[] = {"stopped", "held", "resumed", "taken"};

struct Cell {
  Method method;
  const char* moment;
  Victim victim;

  /// A moment of what the OCI runtime does, or of what is done in its place.
  bool in_runtime = false;

  std::string point() const {
    if (in_runtime) return fmt::format("runtime.{}.{}", method.verb, moment);
    return fmt::format("task.{}.{}", method.name, moment);
  }
  std::string words() const {
    const char* by = method.by == By::kExec ? " of an exec" : "";
    return fmt::format("{:<8}{:<12}{:<9}{}", method.name, by, moment, name_of(victim));
  }
  /// An exec that ends between its OCI runtime and the daemon's look at it, while the keeper that
  /// is its parent dies: whoever inherits it has reaped it by then. Its Wait is asked meanwhile.
  /// Seen in about half the runs of each of these three moments, and in no other.
  bool may_lose_exec() const {
    const bool in_start = in_runtime || (std::string_view(method.name) == "Wait" &&
                                         std::string_view(moment) == kMoments[0]);
    return victim == Victim::kKeeper && method.by == By::kExec && in_start;
  }
  /// Neither a container nor a call may be lost.
  bool loses_nothing() const { return victim == Victim::kDaemon || victim == Victim::kKeeper; }
};

// Says if it ever ran twice; a numbered line every so often; its own exit code at SIGTERM, of which
// a module knows nothing.
std::vector<std::string> writer(bool wasm, int i) {
  if (wasm) {
    return {"/tool.wasm", "note", fmt::format("matrix-{}-", i), "claim", fmt::format("/lock/{}", i),
            "tick",       "line"};
  }
  return {"sh", "-c",
          fmt::format(": matrix-{0}-; mkdir /lock/{0} || echo RAN TWICE; trap 'exit {1}' TERM;"
                      "n=0; while :; do echo line $n; n=$((n+1)); sleep 0.1; done",
                      i, 7 + i)};
}
int code_of_writer(bool wasm, int i) {
  return wasm ? 143 : 7 + i;
}
std::vector<std::string> exec_command(bool wasm) {
  if (wasm) return {"/tool.wasm", "claim", "/lock/exec", "print", "once", "exit", "9"};
  return {"sh", "-c", "mkdir /lock/exec || echo RAN TWICE; echo once; exit 9"};
}

Container create_writer(Case& e, const Pod& pod, int i) {
  const bool wasm = e.lab().sandboxer().wasm();
  cri::ContainerConfig config =
      e.container_config(writer(wasm, i), wasm ? kWasmImage : kBusyboxImage);
  cri::Mount* lock = config.add_mounts();
  lock->set_container_path("/lock");
  lock->set_host_path(e.scratch() / "lock");
  return e.create(pod, config);
}

bool daemon_stands_still(pid_t pid) {
  const std::string stat = read_text(fmt::format("/proc/{}/stat", pid));
  const std::size_t name = stat.rfind(')');
  return name != std::string::npos && stat.substr(name).starts_with(") T");
}

// As the kernel names the program.
std::string command_of(pid_t pid) {
  return trimmed(read_text(fmt::format("/proc/{}/comm", pid)));
}

/// One pod in which it happens, and others that must not notice.
class Trial {
 public:
  Trial(Case& e, const Cell& cell, int others) : e_(e), cell_(cell) {
    fs::create_directories(e.scratch() / "lock");
    for (int i = 1; i <= others; ++i) {
      others_.push_back({e.run_pod(e.host_network_config()), {}});
      others_.back().container = create_writer(e, others_.back().pod, i);
      REQUIRE(e.cri().start_container(others_.back().container.id).has_value());
    }
    pod_ = e.run_pod(e.host_network_config());
    container_ = create_writer(e, pod_, 0);
    if (cell.method.by != By::kStart) {
      REQUIRE(e.cri().start_container(container_.id).has_value());
      e.await_output(container_, "line 1\n");
    }
    for (const RunningPod& other : others_) e.await_output(other.container, "line 1\n");
  }

  void run() {
    Lab& lab = e_.lab();
    const bool dies_there = cell_.victim == Victim::kDaemon;
    lab.arm(cell_.point(), dies_there ? "kill" : "stop");
    std::jthread caller([this] { call(); });
    const pid_t daemon = lab.sandboxer_pid();
    const bool came = wait_until(
        [&] { return dies_there ? !lab.healthy() : daemon_stands_still(daemon); }, kPatience);
    if (came) {
      strike(daemon);
    } else {
      lab.disarm(cell_.point());
    }
    caller.join();
    REQUIRE(came);
    if (cell_.victim == Victim::kContainerd) lab.start_containerd();
  }

  void check() {
    if (cell_.may_lose_exec() && !outcome_.empty()) {
      INFO(outcome_);
      CHECK(outcome_.find("OCI runtime exec failed: the process ") != std::string::npos);
      CHECK(outcome_.find(" of its pid file: pidfd_open ") != std::string::npos);
      CHECK(outcome_.ends_with(": No such process"));
      // How it ended is lost, and not that it ran.
      CHECK(fs::exists(e_.scratch() / "lock/exec"));
    } else if (cell_.loses_nothing()) {
      INFO(outcome_);
      CHECK(outcome_.empty());
      if (cell_.method.by == By::kExec) CHECK(exec_code_ == 9);
    }
    if (cell_.victim == Victim::kRuntime) check_words();
    // The others have gone on, but where containerd has given up all.
    const bool lost = cell_.victim == Victim::kBoth;
    for (std::size_t i = 0; i < others_.size(); ++i) {
      const Container& other = others_[i].container;
      CAPTURE(i);
      CHECK(e_.state(others_[i].pod) == cri::SANDBOX_READY);
      if (lost) {
        CHECK(e_.finish(other).status.exit_code() == 255);
      } else {
        CHECK(e_.status(other).state() == cri::CONTAINER_RUNNING);
        CHECK(e_.cri().stop_container(other.id, 20).has_value());
        CHECK(e_.finish(other).status.exit_code() ==
              code_of_writer(wasm(), static_cast<int>(i) + 1));
        check_log(other);
      }
    }
    check_victim_container(lost);
    if (lost) {
      CHECK(wait_until([] { return processes_with("matrix-").empty(); }, 5s));
    }
    CHECK(e_.state(pod_) == cri::SANDBOX_READY);
    if (wasm()) {
      CHECK(e_.run(pod_, wasm_config(e_, {"/hello.wasm"})).status.exit_code() == 0);
    } else {
      CHECK(e_.output_of(pod_, "echo usable") == "usable");
    }
  }

  // With the pods removed. containerd 2.1.9 keeps until its end: the bundle of a task that it does
  // not get an answer from any more in a StartContainer (container_start.go) or while it loads its
  // containers (restart.go, after a Delete of the one before it), and the connection and the shim
  // log of a task that it connected to at its start and then did not want (shim_load.go,
  // loadShimTask). A restart shows that there is no more.
  void forget() {
    const bool restarted = cell_.victim == Victim::kContainerd;
    const bool bundle_left = fs::exists(e_.lab().bundle(container_.id));
    if (bundle_left) CHECK((restarted || cell_.victim == Victim::kBoth));
    if (!bundle_left && !restarted) return;
    e_.lab().stop_containerd();
    e_.lab().start_containerd();
  }

 private:
  void call() {
    Result<> done;
    if (cell_.method.by == By::kStart) {
      done = e_.cri().start_container(container_.id);
    } else if (cell_.method.by == By::kStop) {
      done = e_.cri().stop_container(container_.id, 20);
    } else {
      const auto answer = e_.cri().exec_sync(container_.id, exec_command(wasm()), 30);
      if (answer) exec_code_ = answer->exit_code();
      if (answer && answer->stdout() != "once\n") outcome_ = "the exec said " + answer->stdout();
      if (!answer) done = fail(answer.error());
    }
    if (!done) outcome_ = done.error().message;
  }

  void strike(pid_t daemon) {
    Lab& lab = e_.lab();
    switch (cell_.victim) {
      case Victim::kDaemon: break;
      case Victim::kDiskFull: fill_disk(); break;
      case Victim::kKeeper: lab.kill_keeper(); break;
      case Victim::kBoth: lab.kill_both(); break;
      case Victim::kContainerd: lab.kill_containerd(); break;
      case Victim::kWorkload:
        for (const pid_t pid : processes_with("matrix-0-")) ::kill(pid, SIGKILL);
        break;
      case Victim::kRuntime:
        for (const pid_t pid : processes_with(container_.id)) {
          if (command_of(pid) == "runc") ::kill(pid, SIGKILL);
        }
        break;
    }
    const bool dead = cell_.victim == Victim::kDaemon || cell_.victim == Victim::kBoth ||
                      cell_.victim == Victim::kDiskFull;
    if (dead) {
      lab.kill_sandboxer();
      lab.start_sandboxer();
      // Without a keeper the Controller's socket was refused: containerd's gRPC waits before it
      // asks again, for up to three seconds (T27).
      REQUIRE(wait_until([&] { return e_.cri().pod_status(pod_.id).has_value(); }, kPatience));
    } else {
      ::kill(daemon, SIGCONT);
    }
    if (size_before_ != 0) CHECK(resize_disk(std::exchange(size_before_, 0)));
  }

  // A runtime that was killed: its caller is told so, or it had done its work already.
  void check_words() const {
    INFO(outcome_);
    if (cell_.method.by == By::kStop) {
      CHECK(outcome_.empty());
    } else if (!outcome_.empty()) {
      const std::string step = fmt::format("OCI runtime {} failed", cell_.method.verb);
      CHECK(outcome_.find(step) != std::string::npos);
      CHECK(outcome_.find("was killed by signal 9") != std::string::npos);
    }
  }

  // Whatever became of the call: the container is in a state that containerd can go on from.
  void check_victim_container(bool lost) {
    const auto settled = [&] {
      const auto status = e_.cri().container_status(container_.id);
      return status && (status->state() == cri::CONTAINER_EXITED ||
                        status->state() == cri::CONTAINER_RUNNING ||
                        status->state() == cri::CONTAINER_CREATED);
    };
    REQUIRE(wait_until(settled, kPatience));
    if (cell_.loses_nothing() && cell_.method.by != By::kStop) {
      CHECK(e_.status(container_).state() == cri::CONTAINER_RUNNING);
      e_.await_output(container_, "line 1\n");
      CHECK(e_.cri().stop_container(container_.id, 20).has_value());
    }
    if (cell_.loses_nothing()) {
      CHECK(e_.finish(container_).status.exit_code() == code_of_writer(wasm(), 0));
    }
    if (e_.status(container_).state() == cri::CONTAINER_RUNNING) {
      CHECK(e_.cri().stop_container(container_.id, 20).has_value());
    }
    if (!lost && fs::exists(container_.log)) check_log(container_);
  }

  // No gap, no repeat, never run twice.
  void check_log(const Container& container) {
    std::size_t n = 0;
    for (const std::string& line : lines_of(e_.log(container).out)) {
      if (line != fmt::format("line {}", n)) {
        FAIL_CHECK("expected line " << n << ", got: " << line);
        return;
      }
      ++n;
    }
  }

  // The daemon dies, and the next one finds no room until it is up. The tmpfs is made as small as
  // what it holds: filling it would take the memory of the machine.
  void fill_disk() {
    size_before_ = fs::space(e_.lab().dir()).capacity;
    // What the keeper lets go of meanwhile makes room.
    CHECK(wait_until(
        [&] {
          const auto room = fs::space(e_.lab().dir());
          return room.free == 0 || (resize_disk(room.capacity - room.free) && false);
        },
        kPatience));
  }
  bool resize_disk(std::uintmax_t bytes) const {
    const std::string option = fmt::format("remount,size={}", bytes);
    return run_checked({"mount", "-o", option, e_.lab().dir().string()}).has_value();
  }

  bool wasm() const { return e_.lab().sandboxer().wasm(); }

  Case& e_;
  Cell cell_;
  std::vector<RunningPod> others_;
  Pod pod_;
  Container container_;
  /// Empty when the call went as an undisturbed one does.
  std::string outcome_;
  int exec_code_ = -1;
  /// Of the state tmpfs while it is full.
  std::uintmax_t size_before_ = 0;
};

// KUASAR_MATRIX_ONLY in the environment: the cells whose words contain it.
bool selected(const Cell& cell) {
  const char* only = std::getenv("KUASAR_MATRIX_ONLY");
  return only == nullptr || cell.words().find(only) != std::string::npos;
}

using RunCase = void (*)(const std::function<void(Case&)>&);

void run_cells(const std::vector<Cell>& cells, int others, RunCase run = run_case) {
  if (std::none_of(cells.begin(), cells.end(), selected))
    SKIP("KUASAR_MATRIX_ONLY selects no cell");
  for (const Cell& cell : cells) {
    if (!selected(cell)) continue;
    DYNAMIC_SECTION(cell.words() << ", " << others + 1 << " pods") {
      run([&](Case& e) {
        e.only_ours("the failure matrix");
        if (!e.lab().has_failpoints()) SKIP("the sandboxer was built without failpoints");
        const auto begun = std::chrono::steady_clock::now();
        {
          Trial trial(e, cell, others);
          trial.run();
          trial.check();
          e.clean_up();
          trial.forget();
        }
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begun;
        fmt::print("matrix  {:<48} {:>3} pods  {:>5.1f} s\n", cell.words(), others + 1,
                   took.count());
        std::fflush(stdout);
      });
    }
  }
}

std::vector<Cell> all_cells(std::initializer_list<Victim> victims) {
  std::vector<Cell> cells;
  for (const Victim victim : victims) {
    for (const Method& method : kMethods) {
      for (const char* moment : kMoments) cells.push_back({method, moment, victim});
    }
  }
  return cells;
}

std::vector<Cell> runtime_cells(std::initializer_list<Victim> victims) {
  std::vector<Cell> cells;
  for (const Victim victim : victims) {
    for (const Method& method : kMethods) {
      if (method.verb == nullptr) continue;
      for (const char* moment : kRuntimeMoments) {
        // One that has ended can be killed no more.
        if (victim == Victim::kRuntime && moment != kRuntimeMoments[0]) continue;
        cells.push_back({method, moment, victim, true});
      }
    }
    if (victim == Victim::kRuntime) continue;
    for (const char* moment : kFifoMoments) {
      cells.push_back({{"Start", By::kStart, "start"}, moment, victim, true});
    }
  }
  return cells;
}

}  // namespace

TEST_CASE("matrix: the daemon dies at every moment of every Task call", "[e2e][table][matrix]") {
  run_cells(all_cells({Victim::kDaemon}), 1);
}

namespace {

std::vector<Cell> keeper_cells() {
  std::vector<Cell> cells;
  for (const Victim victim : {Victim::kKeeper, Victim::kBoth}) {
    cells.push_back({{"Create", By::kStart}, "done", victim});
    cells.push_back({{"Start", By::kStart}, "before", victim});
    cells.push_back({{"Kill", By::kStop}, "done", victim});
    cells.push_back({{"Start", By::kExec}, "done", victim});
  }
  return cells;
}

}  // namespace

TEST_CASE("matrix: the keeper, and both, die, a moment of each call", "[e2e][table][matrix]") {
  run_cells(keeper_cells(), 1);
}

TEST_CASE("wasm matrix: the daemon dies at every moment of every Task call",
          "[e2e][wasm][matrix]") {
  run_cells(all_cells({Victim::kDaemon}), 1, run_wasm_case);
}

TEST_CASE("wasm matrix: the keeper, and both, die, a moment of each call", "[e2e][wasm][matrix]") {
  run_cells(keeper_cells(), 1, run_wasm_case);
}

TEST_CASE("matrix: the daemon, or the OCI runtime, dies while that runs", "[e2e][table][matrix]") {
  run_cells(runtime_cells({Victim::kDaemon, Victim::kRuntime}), 1);
}

namespace {

std::vector<Cell> other_cells() {
  return all_cells(
      {Victim::kKeeper, Victim::kBoth, Victim::kContainerd, Victim::kWorkload, Victim::kDiskFull});
}

}  // namespace

TEST_CASE("wasm matrix: every other victim at every moment", "[.long-matrix]") {
  run_cells(other_cells(), 1, run_wasm_case);
}

TEST_CASE("matrix: every other victim at every moment", "[.long-matrix]") {
  std::vector<Cell> cells = other_cells();
  const std::vector<Cell> more =
      runtime_cells({Victim::kKeeper, Victim::kBoth, Victim::kContainerd, Victim::kDiskFull});
  cells.insert(cells.end(), more.begin(), more.end());
  run_cells(cells, 1);
}

TEST_CASE("matrix: with 50 pods", "[.long-matrix]") {
  std::vector<Cell> cells = all_cells({Victim::kDaemon});
  for (const Victim victim : {Victim::kKeeper, Victim::kBoth, Victim::kContainerd,
                              Victim::kWorkload, Victim::kDiskFull}) {
    cells.push_back({{"Start", By::kStart}, "done", victim});
    cells.push_back({{"Kill", By::kStop}, "done", victim});
    cells.push_back({{"Start", By::kExec}, "done", victim});
  }
  run_cells(cells, 49);
}

}  // namespace kuasar::test
