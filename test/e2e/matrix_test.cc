#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <filesystem>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "e2e/many_pods.h"
#include "e2e/table.h"
#include "support/wait.h"

// The failure matrix: who dies (victim), when (a Task method of one container, before its effect,
// with its effect done, with its answer sent), among how many pods. Moments are failpoints of the
// daemon, so that the tests are skipped without them.

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

constexpr std::chrono::seconds kPatience(40);

enum class Victim { kDaemon, kKeeper, kBoth, kContainerd, kWorkload, kDiskFull };

const char* name_of(Victim victim) {
  switch (victim) {
    case Victim::kDaemon: return "daemon";
    case Victim::kKeeper: return "keeper";
    case Victim::kBoth: return "both";
    case Victim::kContainerd: return "containerd";
    case Victim::kWorkload: return "workload";
    case Victim::kDiskFull: return "daemon, disk full";
  }
  return "?";
}

/// What makes containerd call the method.
enum class By { kStart, kStop, kExec };

struct Method {
  const char* name;
  By by;
};

// Start and Delete are called for an init and for an exec, which are not the same code.
constexpr Method kMethods[] = {
    {"Create", By::kStart}, {"Start", By::kStart}, {"Wait", By::kStop},   {"Connect", By::kStart},
    {"State", By::kStop},   {"Kill", By::kStop},   {"Delete", By::kStop}, {"Exec", By::kExec},
    {"Start", By::kExec},   {"Wait", By::kExec},   {"Delete", By::kExec},
};
constexpr const char* kMoments[] = {"before", "done", "answered"};

struct Cell {
  Method method;
  const char* moment;
  Victim victim;

  std::string point() const { return fmt::format("task.{}.{}", method.name, moment); }
  std::string words() const {
    const char* by = method.by == By::kExec ? " of an exec" : "";
    return fmt::format("{:<8}{:<12}{:<9}{}", method.name, by, moment, name_of(victim));
  }
  /// Neither a container nor a call may be lost.
  bool loses_nothing() const { return victim == Victim::kDaemon || victim == Victim::kKeeper; }
};

// Says if it ever ran twice; a numbered line every so often; its own exit code at SIGTERM.
std::string writer(int i) {
  return fmt::format(
      ": matrix-{0}-; mkdir /lock/{0} || echo RAN TWICE; trap 'exit {1}' TERM;"
      "n=0; while :; do echo line $n; n=$((n+1)); sleep 0.1; done",
      i, 7 + i);
}

Container create_writer(Case& e, const Pod& pod, int i) {
  cri::ContainerConfig config = e.container_config({"sh", "-c", writer(i)});
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
    const bool dies_there = cell_.victim == Victim::kDaemon || cell_.victim == Victim::kDiskFull;
    if (cell_.victim == Victim::kDiskFull) fill_disk();
    lab.arm(cell_.point(), dies_there ? "kill" : "stop");
    std::thread caller([this] { call(); });
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
    if (cell_.loses_nothing()) {
      INFO(outcome_);
      CHECK(outcome_.empty());
      if (cell_.method.by == By::kExec) CHECK(exec_code_ == 9);
    }
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
        CHECK(e_.finish(other).status.exit_code() == 7 + static_cast<int>(i) + 1);
        check_log(other);
      }
    }
    check_victim_container(lost);
    if (lost) {
      CHECK(wait_until([] { return processes_with("matrix-").empty(); }, 5s));
    }
    CHECK(e_.state(pod_) == cri::SANDBOX_READY);
    CHECK(e_.output_of(pod_, "echo usable") == "usable");
  }

 private:
  void call() {
    Result<> done;
    if (cell_.method.by == By::kStart) {
      done = e_.cri().start_container(container_.id);
    } else if (cell_.method.by == By::kStop) {
      done = e_.cri().stop_container(container_.id, 20);
    } else {
      const auto answer = e_.cri().exec_sync(
          container_.id, {"sh", "-c", "mkdir /lock/exec || echo RAN TWICE; echo once; exit 9"}, 30);
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
      case Victim::kDiskFull: break;
      case Victim::kKeeper: lab.kill_keeper(); break;
      case Victim::kBoth: lab.kill_both(); break;
      case Victim::kContainerd: lab.kill_containerd(); break;
      case Victim::kWorkload:
        for (const pid_t pid : processes_with("matrix-0-")) ::kill(pid, SIGKILL);
        break;
    }
    const bool dead = cell_.victim == Victim::kDaemon || cell_.victim == Victim::kBoth ||
                      cell_.victim == Victim::kDiskFull;
    if (dead) {
      lab.kill_sandboxer();
      lab.start_sandboxer();
    } else {
      ::kill(daemon, SIGCONT);
    }
    if (!filler_.empty()) fs::remove(filler_);
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
    if (cell_.loses_nothing()) CHECK(e_.finish(container_).status.exit_code() == 7);
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

  // The daemon's own requests find no room until it has been restarted.
  void fill_disk() {
    filler_ = e_.lab().dir() / "filler";
    const auto room = fs::space(e_.lab().dir());
    REQUIRE(run_checked({"fallocate", "-l", std::to_string(room.available), filler_.string()}));
  }

  Case& e_;
  Cell cell_;
  std::vector<RunningPod> others_;
  Pod pod_;
  Container container_;
  /// Empty when the call went as an undisturbed one does.
  std::string outcome_;
  int exec_code_ = -1;
  fs::path filler_;
};

void run_cells(const std::vector<Cell>& cells, int others) {
  for (const Cell& cell : cells) {
    DYNAMIC_SECTION(cell.words() << ", " << others + 1 << " pods") {
      run_case([&](Case& e) {
        e.only_ours("the failure matrix");
        if (!e.lab().has_failpoints()) SKIP("the sandboxer was built without failpoints");
        const auto begun = std::chrono::steady_clock::now();
        {
          Trial trial(e, cell, others);
          trial.run();
          trial.check();
          e.clean_up();
        }
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begun;
        fmt::print("matrix  {:<48} {:>3} pods  {:>5.1f} s\n", cell.words(), others + 1,
                   took.count());
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

}  // namespace

TEST_CASE("matrix: the daemon dies at every moment of every Task call", "[e2e][table][matrix]") {
  run_cells(all_cells({Victim::kDaemon}), 1);
}

TEST_CASE("matrix: the keeper, and both, die, a moment of each call", "[e2e][table][matrix]") {
  std::vector<Cell> cells;
  for (const Victim victim : {Victim::kKeeper, Victim::kBoth}) {
    cells.push_back({{"Create", By::kStart}, "done", victim});
    // With both dead between Create and Start containerd 2.1 leaves its own bundle directory
    // behind.
    if (victim == Victim::kKeeper) cells.push_back({{"Start", By::kStart}, "before", victim});
    cells.push_back({{"Kill", By::kStop}, "done", victim});
    cells.push_back({{"Start", By::kExec}, "done", victim});
  }
  run_cells(cells, 1);
}

TEST_CASE("matrix: every other victim at every moment", "[.long-matrix]") {
  run_cells(all_cells({Victim::kKeeper, Victim::kBoth, Victim::kContainerd, Victim::kWorkload,
                       Victim::kDiskFull}),
            1);
}

TEST_CASE("matrix: with 50 pods", "[.long-matrix]") {
  run_cells(all_cells({Victim::kDaemon}), 49);
}

}  // namespace kuasar::test
