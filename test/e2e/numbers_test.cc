#include <fmt/format.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "e2e/many_pods.h"
#include "e2e/table.h"
#include "e2e/watch.h"
#include "support/process_figures.h"
#include "support/wait.h"

// Prints the figures of docs/RELIABILITY.md. Not part of the table: a figure is no verdict, but
// what the design promises is checked with the room that a busy machine needs.

namespace kuasar::test {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

}  // namespace

TEST_CASE("numbers: 100 pods, restart, memory", "[.numbers]") {
  run_case([](Case& e) {
    e.only_ours("figures");
    constexpr int kPods = 100;
    const std::vector<RunningPod> all = run_many(
        e, kPods, [&] { return e.host_network_config(); },
        [](int i) { return fmt::format("echo up; exec sleep 37{:02}", i); });
    for (const RunningPod& item : all) e.await_output(item.container, "up\n");
    const pid_t keeper = e.lab().keeper_pid();
    const double at_rest = cpu_seconds(keeper);
    fmt::print("numbers  keeper with {} pods: PSS {} KiB, private dirty {} KiB\n", kPods,
               memory(keeper).pss / 1024, memory(keeper).private_dirty / 1024);
    fmt::print("numbers  daemon with {} pods: PSS {} KiB, private dirty {} KiB\n", kPods,
               memory(e.lab().sandboxer_pid()).pss / 1024,
               memory(e.lab().sandboxer_pid()).private_dirty / 1024);
    std::vector<double> ready;
    for (int i = 0; i < 7; ++i) {
      e.lab().kill_sandboxer();
      const auto begun = Clock::now();
      e.lab().start_sandboxer();
      ready.push_back(std::chrono::duration<double, std::milli>(Clock::now() - begun).count());
    }
    std::sort(ready.begin(), ready.end());
    fmt::print(
        "numbers  kill -9 with {} pods: ready again after {:.0f} ms (median of 7; {:.0f} to "
        "{:.0f})\n",
        kPods, ready[3], ready.front(), ready.back());
    fmt::print(
        "numbers  keeper's CPU time since its start: {:.2f} s, of that in {} restarts "
        "{:.2f} s\n",
        cpu_seconds(keeper), ready.size(), cpu_seconds(keeper) - at_rest);
    CHECK(memory(keeper).pss <= 1U << 20);
    CHECK(ready[3] <= 300);
    remove_many(e, all);
  });
}

TEST_CASE("numbers: a container that writes costs the daemon nothing", "[.numbers]") {
  run_case([](Case& e) {
    e.only_ours("figures");
    const Pod pod = e.run_pod(e.host_network_config());
    const double before = cpu_seconds(e.lab().sandboxer_pid());
    const auto begun = Clock::now();
    const Container writer =
        e.shell(pod, "yes \"$(head -c 4000 /dev/zero | tr '\\0' x)\" | head -c 500000000");
    e.finish(writer, 120s);
    const double seconds = std::chrono::duration<double>(Clock::now() - begun).count();
    const double cpu = cpu_seconds(e.lab().sandboxer_pid()) - before;
    fmt::print(
        "numbers  PASS: 500 MB of log in {:.1f} s ({:.0f} MB/s) cost the daemon {:.3f} s of "
        "CPU\n",
        seconds, 500 / seconds, cpu);
    CHECK(cpu < 0.2);
  });
}

TEST_CASE("numbers: what a pump costs, moving and waiting", "[.numbers]") {
  run_case([](Case& e) {
    e.only_ours("figures");
    cri::PodSandboxConfig shared = e.pod_config();
    namespace_options(shared)->set_pid(cri::POD);
    const Pod pod = e.run_pod(shared);
    cri::ContainerConfig config = e.container_config(
        {"sh", "-c",
         "yes \"$(head -c 4000 /dev/zero | tr '\\0' x)\" | head -c 500000000; echo; echo up;"
         "exec sleep 3620"});
    namespace_options(config)->set_pid(cri::POD);
    const pid_t daemon = e.lab().sandboxer_pid();
    const double before = cpu_seconds(daemon);
    e.start(pod, config);
    // As long as it writes, the words are a part of the shell's command line.
    const auto silent = [] {
      return processes_with("exec sleep 3620").empty() && !processes_with("sleep 3620").empty();
    };
    REQUIRE(wait_until(silent, 120s));
    const double moved = cpu_seconds(daemon);
    std::this_thread::sleep_for(5s);
    const double waited = cpu_seconds(daemon);
    fmt::print(
        "numbers  PUMP: 500 MB of log cost the daemon {:.2f} s of CPU, 5 s of silence {:.3f} s\n",
        moved - before, waited - moved);
    CHECK(moved - before < 10);
    CHECK(waited - moved < 0.1);
  });
}

}  // namespace kuasar::test
