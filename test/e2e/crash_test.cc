#include <fmt/format.h>
#include <signal.h>
#include <sys/utsname.h>

#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "e2e/many_pods.h"
#include "e2e/table.h"
#include "e2e/watch.h"
#include "support/wait.h"

// kill -9 of the daemon, of its keeper and of containerd while pods work.

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;

constexpr std::chrono::seconds kPatience(30);

// A line every fifth of a second, and an exit code of its own at SIGTERM (USR1: at once, 40 KiB).
std::string counting_script(int i) {
  return fmt::format(
      ": counting-{0}-; trap 'exit {1}' TERM;"
      "trap 'head -c 40960 /dev/zero | tr \\\\0 x; echo; exit {1}' USR1;"
      "n=0; while :; do echo line $n; n=$((n+1)); sleep 0.2; done",
      i, 1 + i % 100);
}

int expected_code(int i) {
  return 1 + i % 100;
}

void signal_counter(int i, int signal) {
  std::set<pid_t> pids;
  // A shell that is just starting its `sleep` is there twice until that is executed.
  REQUIRE(wait_until(
      [&] {
        pids = processes_with(fmt::format("counting-{}-", i));
        return pids.size() == 1;
      },
      kPatience));
  REQUIRE(::kill(*pids.begin(), signal) == 0);
}

bool counter_ended(int i) {
  return processes_with(fmt::format("counting-{}-", i)).empty();
}

// Every line is there once, in order.
void check_lines(Case& e, const Container& container, std::size_t at_least) {
  std::size_t n = 0;
  for (const std::string& line : lines_of(e.log(container).out)) {
    if (!line.starts_with("line ")) continue;
    if (line != fmt::format("line {}", n)) {
      FAIL_CHECK("expected line " << n << ", got \"" << line << "\"");
      return;
    }
    ++n;
  }
  CHECK(n >= at_least);
}

// An exec that is under way while others die.
struct ExecInFlight {
  ExecInFlight(Case& e, const Container& container)
      : thread([this, &e, id = container.id] {
          answer =
              e.cri().exec_sync(id, {"sh", "-c", "echo begun; sleep 4; echo done; exit 9"}, 60);
        }) {}
  Result<cri::ExecSyncResponse> answer = fail(Code::kUnknown, "no answer");
  std::jthread thread;
};

// An exec that ends when it is told to, by a file in its container.
struct ExecOnDemand {
  ExecOnDemand(Case& e, const Container& container)
      : thread([this, &e, id = container.id] {
          answer = e.cri().exec_sync(id, {"sh", "-c", kScript}, 60);
        }) {
    REQUIRE(wait_until([] { return !processes_with("on-demand-").empty(); }, kPatience));
  }
  void end() const {
    for (const pid_t pid : processes_with("on-demand-")) {
      std::ofstream(fmt::format("/proc/{}/root/tmp/end", pid)) << "now";
    }
    REQUIRE(wait_until([] { return processes_with("on-demand-").empty(); }, kPatience));
  }
  static constexpr char kScript[] =
      ": on-demand-; until [ -e /tmp/end ]; do sleep 0.1; done; echo ended; exit 5";
  Result<cri::ExecSyncResponse> answer = fail(Code::kUnknown, "no answer");
  std::jthread thread;
};

std::int64_t now_ns() {
  return std::chrono::nanoseconds(std::chrono::system_clock::now().time_since_epoch()).count();
}

// Inodes of containerd's sockets: of its connections those that came through everything.
std::set<std::string> sockets_of(pid_t pid) {
  std::set<std::string> sockets;
  std::error_code ec;
  for (const auto& fd : fs::directory_iterator(fmt::format("/proc/{}/fd", pid), ec)) {
    const std::string target = fs::read_symlink(fd.path(), ec).native();
    if (target.starts_with("socket:")) sockets.insert(target);
  }
  return sockets;
}

// PIDFD_GET_INFO tells how a process ended that was never our child.
bool kernel_tells_exits_of_others() {
  utsname name{};
  ::uname(&name);
  int major = 0;
  int minor = 0;
  std::sscanf(name.release, "%d.%d", &major, &minor);
  return major > 6 || (major == 6 && minor >= 15);
}

// How often a daemon has handed everything to a new keeper.
std::size_t keepers_replaced(Case& e) {
  const std::string log = read_text(e.lab().sandboxer_log());
  std::size_t count = 0;
  for (std::size_t at = 0; (at = log.find("processes now", at)) != std::string::npos; ++at) {
    ++count;
  }
  return count;
}

// Kills the keeper and, in `meanwhile`, does what happens without one.
void replace_keeper(Case& e, const std::function<void()>& meanwhile = {}) {
  const std::size_t before = keepers_replaced(e);
  REQUIRE(e.lab().keeper_pid() != 0);
  e.lab().kill_keeper();
  if (meanwhile) meanwhile();
  REQUIRE(wait_until([&] { return keepers_replaced(e) > before; }, kPatience));
}

}  // namespace

TEST_CASE("T9 T27: 50 pods, kill -9 of the daemon, the keeper, and both in turn: nothing is lost",
          "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("containers that outlive their daemon");
    constexpr int kPods = 50;
    const std::vector<RunningPod> all = run_many(
        e, kPods, [&] { return e.host_network_config(); }, counting_script);
    for (const RunningPod& item : all) e.await_output(item.container, "line 1\n");

    // Ten have an exec in flight, one a stop that takes its time.
    std::vector<std::unique_ptr<ExecInFlight>> execs;
    for (int i = 0; i < kPods; i += 5) {
      execs.push_back(
          std::make_unique<ExecInFlight>(e, all[static_cast<std::size_t>(i)].container));
    }
    const Container stubborn =
        e.shell(all[1].pod, "trap '' TERM; echo up; while :; do sleep 0.2; done");
    e.await_output(stubborn, "up\n");
    Result<> stopped = fail(Code::kUnknown, "no answer");
    std::jthread stopper([&] { stopped = e.cri().stop_container(stubborn.id, 5); });

    ExecOnDemand ends_alone(e, all[6].container);

    Watch watch(e.lab().containerd_socket(), kPods, kPods);
    REQUIRE(watch.ask_more(3));
    const std::set<std::string> connections = sockets_of(e.lab().containerd_pid());
    e.lab().kill_sandboxer();
    // These end while nobody but the keeper is there.
    watch.expect_containers(kPods - 3);
    const std::int64_t first_end = now_ns();
    for (const int i : {2, 3, 4}) signal_counter(i, SIGTERM);
    REQUIRE(wait_until([] { return counter_ended(2) && counter_ended(3) && counter_ended(4); },
                       kPatience));
    ends_alone.end();
    // On a busy machine the keeper may get to look some time later; a daemon that looks first is
    // later still.
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
    const std::int64_t last_end = now_ns();
    e.lab().start_sandboxer();
    ends_alone.thread.join();
    REQUIRE(ends_alone.answer.has_value());
    CHECK(ends_alone.answer->exit_code() == 5);
    CHECK(ends_alone.answer->stdout() == "ended\n");
    REQUIRE(watch.ask_more(5));
    replace_keeper(e);
    REQUIRE(watch.ask_more(5));

    // This one ends while there is no keeper, and a daemon that does not get to look.
    const pid_t daemon = e.lab().sandboxer_pid();
    REQUIRE(::kill(daemon, SIGSTOP) == 0);
    replace_keeper(e, [&] {
      watch.expect_containers(kPods - 4);
      signal_counter(7, SIGTERM);
      REQUIRE(wait_until([] { return counter_ended(7); }, kPatience));
      REQUIRE(::kill(daemon, SIGCONT) == 0);
    });
    REQUIRE(watch.ask_more(5));

    // The second dies 100 ms after the first, which is up again.
    e.lab().kill_sandboxer();
    const auto struck = std::chrono::steady_clock::now();
    e.lab().start_sandboxer();
    std::this_thread::sleep_until(struck + std::chrono::milliseconds(100));
    replace_keeper(e);
    REQUIRE(watch.ask_more(5));

    stopper.join();
    CHECK(stopped.has_value());
    CHECK(e.finish(stubborn).status.exit_code() == 137);
    for (const auto& exec : execs) {
      exec->thread.join();
      INFO((exec->answer ? "" : exec->answer.error().message));
      REQUIRE(exec->answer.has_value());
      CHECK(exec->answer->exit_code() == 9);
      CHECK(exec->answer->stdout() == "begun\ndone\n");
    }
    watch.stop();
    INFO("asked " << watch.asked() << " times");
    CHECK(watch.complaint() == "");

    for (const int i : {2, 3, 4}) {
      const cri::ContainerStatus status =
          e.finish(all[static_cast<std::size_t>(i)].container).status;
      CHECK(status.exit_code() == expected_code(i));
      CHECK(status.finished_at() >= first_end);
      CHECK(status.finished_at() <= last_end);
    }
    CHECK(e.finish(all[7].container).status.exit_code() ==
          (kernel_tells_exits_of_others() ? expected_code(7) : 255));
    // Of containerd's connections those of running containers have never closed.
    std::size_t kept = 0;
    for (const std::string& now : sockets_of(e.lab().containerd_pid())) {
      kept += connections.count(now);
    }
    CHECK(kept >= kPods - 4);
    for_many(kPods, 16, [&](int i) {
      return e.cri().stop_container(all[static_cast<std::size_t>(i)].container.id, 20);
    });
    for (int i = 0; i < kPods; ++i) {
      const Container& container = all[static_cast<std::size_t>(i)].container;
      CAPTURE(i);
      if (i != 7) CHECK(e.finish(container).status.exit_code() == expected_code(i));
      check_lines(e, container, 2);
    }
    remove_many(e, all);
  });
}

TEST_CASE("T9 T17: what the init of a shared PID namespace writes is whole over every kill -9",
          "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("containers that outlive their daemon");
    const fs::path told = e.scratch() / "told";
    fs::create_directories(told);
    cri::PodSandboxConfig shared = e.pod_config();
    namespace_options(shared)->set_pid(cri::POD);
    const Pod pod = e.run_pod(shared);
    cri::ContainerConfig config = e.container_config(
        {"sh", "-c",
         "n=0; until [ -e /told/end ]; do seq $n $((n+1999)); n=$((n+2000)); sleep 0.02; done;"
         "exit 7"});
    namespace_options(config)->set_pid(cri::POD);
    cri::Mount* mount = config.add_mounts();
    mount->set_container_path("/told");
    mount->set_host_path(told);
    const Container writer = e.start(pod, config);
    e.await_output(writer, "1999\n");
    const auto goes_on = [&] {
      const std::size_t before = e.log(writer).out.size();
      REQUIRE(wait_until([&] { return e.log(writer).out.size() > before; }, kPatience));
    };
    for (int round = 0; round < 2; ++round) {
      e.lab().kill_sandboxer();
      e.lab().start_sandboxer();
      goes_on();
      replace_keeper(e);
      goes_on();
    }
    // It ends while nobody moves what it says, or as soon as somebody does.
    e.lab().kill_sandboxer();
    std::ofstream(told / "end") << "now";
    e.lab().start_sandboxer();
    const Finished end = e.finish(writer);
    CHECK(end.status.exit_code() == 7);
    const std::vector<std::string> lines = lines_of(end.log.out);
    CHECK(lines.size() % 2000 == 0);
    std::size_t n = 0;
    while (n < lines.size() && lines[n] == std::to_string(n)) ++n;
    CHECK(n == lines.size());
  });
}

TEST_CASE("T21: 50 pods, kill -9 of both in the same moment: given up, dead in 5 s, none twice",
          "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("containers that outlive their daemon");
    constexpr int kPods = 50;
    const fs::path beats = e.scratch() / "beats";
    fs::create_directories(beats);
    const auto beating = [&](int i, const std::string& name) {
      cri::ContainerConfig config = e.container_config(
          {"sh", "-c",
           fmt::format(": given-up-; while :; do echo {} >> /beats/{}; sleep 0.2; done", name, i)});
      cri::Mount* mount = config.add_mounts();
      mount->set_container_path("/beats");
      mount->set_host_path(beats);
      return config;
    };
    std::vector<RunningPod> all;
    for (int i = 0; i < kPods; ++i) {
      const Pod pod = e.run_pod(e.host_network_config());
      all.push_back({pod, e.start(pod, beating(i, "first"))});
    }
    for (int i = 0; i < kPods; ++i) {
      REQUIRE(wait_until([&] { return read_text(beats / std::to_string(i)) != ""; }, kPatience));
    }

    e.lab().kill_both();
    for (const RunningPod& item : all) CHECK(e.finish(item.container).status.exit_code() == 255);
    e.lab().start_sandboxer();
    CHECK(wait_until([] { return processes_with("given-up-").empty(); }, std::chrono::seconds(5)));
    // The Controller's socket went with the keeper: containerd's gRPC waits before it asks again.
    const std::string& asked = all.front().pod.id;
    CHECK(wait_until([&] { return e.cri().pod_status(asked).has_value(); }, kPatience));
    // Where one is replaced it has said its last.
    for (int i = 0; i < kPods; i += 10) {
      const RunningPod& item = all[static_cast<std::size_t>(i)];
      CAPTURE(i);
      CHECK(e.state(item.pod) == cri::SANDBOX_READY);
      e.start(item.pod, beating(i, "second"));
      const auto said = [&] { return read_text(beats / std::to_string(i)); };
      REQUIRE(wait_until([&] { return said().ends_with("second\nsecond\nsecond\n"); }, kPatience));
      CHECK(said().find("first", said().find("second")) == std::string::npos);
    }
    remove_many(e, all);
  });
}

TEST_CASE("T22: containers that end while containerd is dead keep their output and their code",
          "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("output that outlives containerd");
    constexpr int kPods = 20;
    const std::vector<RunningPod> all = run_many(
        e, kPods, [&] { return e.host_network_config(); }, counting_script);
    for (const RunningPod& item : all) e.await_output(item.container, "line 1\n");
    e.lab().kill_containerd();
    for (int i = 0; i < kPods; ++i) signal_counter(i, SIGUSR1);
    for (int i = 0; i < kPods; ++i) {
      REQUIRE(wait_until([&] { return counter_ended(i); }, kPatience));
    }
    const auto begun = std::chrono::steady_clock::now();
    e.lab().start_containerd();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begun;
    CHECK(took < std::chrono::seconds(15));
    for (int i = 0; i < kPods; ++i) {
      const Container& container = all[static_cast<std::size_t>(i)].container;
      CAPTURE(i);
      CHECK(e.finish(container).status.exit_code() == expected_code(i));
      check_lines(e, container, 2);
      const std::string out = e.log(container).out;
      CHECK(out.find(std::string(40960, 'x') + "\n") != std::string::npos);
    }
    remove_many(e, all);
  });
}

TEST_CASE("T21: containerd dies with the daemon and its keeper: it has given nothing up",
          "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("containers that outlive everything");
    const Pod pod = e.run_pod(e.host_network_config());
    const Container quiet = e.sleeper(pod);
    // In the same moment: a containerd that sees the connection end takes the bundle's rootfs away.
    REQUIRE(::kill(e.lab().containerd_pid(), SIGSTOP) == 0);
    e.lab().kill_both();
    e.lab().kill_containerd();
    e.lab().start_sandboxer();
    // Longer than a daemon waits before it takes a containerd that lives on to have given up.
    std::this_thread::sleep_for(std::chrono::seconds(3));
    e.lab().start_containerd();
    CHECK(e.state(pod) == cri::SANDBOX_READY);
    CHECK(e.status(quiet).state() == cri::CONTAINER_RUNNING);
    const auto answer = e.cri().exec_sync(quiet.id, {"echo", "well"}, 20);
    INFO((answer ? "" : answer.error().message));
    REQUIRE(answer.has_value());
    CHECK(answer->stdout() == "well\n");
  });
}

TEST_CASE("T29: containerd comes back before the daemon does: all is still RUNNING",
          "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("containers that outlive both their daemons");
    constexpr int kPods = 20;
    const std::vector<RunningPod> all = run_many(
        e, kPods, [&] { return e.host_network_config(); }, counting_script);
    for (const RunningPod& item : all) e.await_output(item.container, "line 1\n");
    e.lab().kill_containerd();
    e.lab().kill_sandboxer();
    // containerd connects to sockets that only the keeper holds, and waits for 5 s.
    // An exception of this thread is the test's own.
    auto starting = std::async(std::launch::async, [&] { e.lab().start_containerd(); });
    wait_until([&] { return fs::exists(e.lab().containerd_socket()); }, kPatience);
    e.lab().start_sandboxer();
    starting.get();
    for (int i = 0; i < kPods; ++i) {
      const RunningPod& item = all[static_cast<std::size_t>(i)];
      CAPTURE(i);
      CHECK(e.state(item.pod) == cri::SANDBOX_READY);
      CHECK(e.status(item.container).state() == cri::CONTAINER_RUNNING);
      CHECK(e.cri().stop_container(item.container.id, 20).has_value());
      CHECK(e.finish(item.container).status.exit_code() == expected_code(i));
      check_lines(e, item.container, 2);
    }
    remove_many(e, all);
  });
}

}  // namespace kuasar::test
