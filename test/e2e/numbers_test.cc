#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <sstream>
#include <string>
#include <vector>

#include "e2e/many_pods.h"
#include "e2e/table.h"
#include "e2e/watch.h"
#include "support/wait.h"

// Prints the figures of docs/RELIABILITY.md. Not part of the table: a figure is no verdict, but
// what the design promises is checked with the room that a busy machine needs.

namespace kuasar::test {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

long kibibytes(pid_t pid, const std::string& field) {
  std::istringstream lines(read_text(fmt::format("/proc/{}/smaps_rollup", pid)));
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with(field)) return std::atol(line.c_str() + field.size());
  }
  return -1;
}

// User and system time of a process (proc(5), /proc/PID/stat fields 14 and 15).
double cpu_seconds(pid_t pid) {
  const std::string stat = read_text(fmt::format("/proc/{}/stat", pid));
  std::istringstream fields(stat.substr(stat.rfind(')') + 2));
  std::string skipped;
  for (int i = 0; i < 11; ++i) fields >> skipped;
  double user = 0;
  double system = 0;
  fields >> user >> system;
  return (user + system) / static_cast<double>(::sysconf(_SC_CLK_TCK));
}

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
               kibibytes(keeper, "Pss:"), kibibytes(keeper, "Private_Dirty:"));
    fmt::print("numbers  daemon with {} pods: PSS {} KiB, private dirty {} KiB\n", kPods,
               kibibytes(e.lab().sandboxer_pid(), "Pss:"),
               kibibytes(e.lab().sandboxer_pid(), "Private_Dirty:"));
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
    CHECK(kibibytes(keeper, "Pss:") <= 1024);
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
        e.shell(pod,
                "i=0; while [ $i -lt 200 ]; do head -c 1000000 /dev/zero | tr '\\0' x; echo;"
                " i=$((i+1)); done");
    e.finish(writer, 120s);
    const double seconds = std::chrono::duration<double>(Clock::now() - begun).count();
    const double cpu = cpu_seconds(e.lab().sandboxer_pid()) - before;
    fmt::print(
        "numbers  PASS: 200 MB of log in {:.1f} s ({:.0f} MB/s) cost the daemon {:.3f} s of "
        "CPU\n",
        seconds, 200 / seconds, cpu);
    CHECK(cpu < 0.2);
  });
}

}  // namespace kuasar::test
