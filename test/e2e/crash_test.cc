#include <fmt/format.h>
#include <signal.h>

#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <filesystem>
#include <memory>
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
  const auto pids = processes_with(fmt::format("counting-{}-", i));
  REQUIRE(pids.size() == 1);
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
  std::thread thread;
};

void replace_keeper(Case& e) {
  const auto replaced = [&] {
    const std::string log = read_text(e.lab().sandboxer_log());
    std::size_t count = 0;
    for (std::size_t at = 0; (at = log.find("processes now", at)) != std::string::npos; ++at) {
      ++count;
    }
    return count;
  };
  const std::size_t before = replaced();
  REQUIRE(e.lab().keeper_pid() != 0);
  e.lab().kill_keeper();
  REQUIRE(wait_until([&] { return replaced() > before; }, kPatience));
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

    // One in ten has an exec in flight, one a stop that takes its time.
    std::vector<std::unique_ptr<ExecInFlight>> execs;
    for (int i = 0; i < kPods; i += 10) {
      execs.push_back(
          std::make_unique<ExecInFlight>(e, all[static_cast<std::size_t>(i)].container));
    }
    const Container stubborn =
        e.shell(all[1].pod, "trap '' TERM; echo up; while :; do sleep 0.2; done");
    e.await_output(stubborn, "up\n");
    Result<> stopped = fail(Code::kUnknown, "no answer");
    std::thread stopper([&] { stopped = e.cri().stop_container(stubborn.id, 5); });

    Watch watch(e.lab().containerd_socket(), kPods, kPods);
    REQUIRE(watch.ask_more(3));
    e.lab().kill_sandboxer();
    // These end while nobody but the keeper is there.
    watch.expect_containers(kPods - 3);
    for (const int i : {2, 3, 4}) signal_counter(i, SIGTERM);
    REQUIRE(wait_until([] { return counter_ended(2) && counter_ended(3) && counter_ended(4); },
                       kPatience));
    e.lab().start_sandboxer();
    REQUIRE(watch.ask_more(5));
    replace_keeper(e);
    REQUIRE(watch.ask_more(5));
    e.lab().kill_sandboxer();
    e.lab().start_sandboxer();
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
      CHECK(e.finish(all[static_cast<std::size_t>(i)].container).status.exit_code() ==
            expected_code(i));
    }
    for_many(kPods, 16, [&](int i) {
      return e.cri().stop_container(all[static_cast<std::size_t>(i)].container.id, 20);
    });
    for (int i = 0; i < kPods; ++i) {
      const Container& container = all[static_cast<std::size_t>(i)].container;
      CAPTURE(i);
      CHECK(e.finish(container).status.exit_code() == expected_code(i));
      check_lines(e, container, 2);
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
    std::thread starter([&] { e.lab().start_containerd(); });
    wait_until([&] { return fs::exists(e.lab().containerd_socket()); }, kPatience);
    e.lab().start_sandboxer();
    starter.join();
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
