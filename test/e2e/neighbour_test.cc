#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "e2e/table.h"
#include "support/process.h"
#include "support/wait.h"

// Noisy neighbours: a tenant uses something up that all pods of the node share, while the create,
// start, exec and stop of a witness in a pod of its own are timed (docs/SECURITY.md). Each case
// also runs against containerd's own shim (KUASAR_LAB_HANDLER=runc).

namespace kuasar::test {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;
using Milliseconds = std::chrono::duration<double, std::milli>;

constexpr int kRounds = 7;
// The witness may take three times as long as alone; less than this is not told from noise on two
// processors that the attacker uses, too.
constexpr double kTimes = 3;
constexpr Milliseconds kNoise{250};

struct Times {
  Milliseconds start;
  Milliseconds exec;
  Milliseconds stop;
};

template <typename F>
Milliseconds time_of(F work) {
  const auto begun = Clock::now();
  work();
  return Clock::now() - begun;
}

Milliseconds median(std::vector<Milliseconds> samples) {
  std::sort(samples.begin(), samples.end());
  return samples[samples.size() / 2];
}

/// What the witness runs, and what is executed in it.
struct Witness {
  cri::ContainerConfig container;
  std::vector<std::string> exec;
};

// A container's whole life in the witness's pod, some times over.
Times witness_times(Case& e, const Pod& pod, const Witness& witness) {
  std::vector<Milliseconds> starts;
  std::vector<Milliseconds> execs;
  std::vector<Milliseconds> stops;
  for (int round = 0; round < kRounds; ++round) {
    Container container;
    starts.push_back(time_of([&] { container = e.start(pod, witness.container); }));
    execs.push_back(time_of([&] {
      const auto answer = e.cri().exec_sync(container.id, witness.exec, 30);
      REQUIRE(answer);
      CHECK(answer->exit_code() == 0);
    }));
    stops.push_back(time_of([&] { REQUIRE(e.cri().stop_container(container.id, 0)); }));
    REQUIRE(e.cri().remove_container(container.id));
  }
  return {median(starts), median(execs), median(stops)};
}

void check_bound(const char* what, Milliseconds alone, Milliseconds beside) {
  INFO(what << " of the witness: " << alone.count() << " ms alone, " << beside.count()
            << " ms beside the attacker");
  CHECK(beside <= std::max(alone * kTimes, kNoise));
}

/// Threads that repeat their work until the end of the scope. The work must not use Catch2's
/// assertions.
class Attack {
 public:
  Attack() = default;
  Attack(const Attack&) = delete;
  Attack& operator=(const Attack&) = delete;
  ~Attack() { stop(); }

  void add(int threads, const std::function<void(int)>& work) {
    for (int i = 0; i < threads; ++i) {
      threads_.emplace_back([this, i, work] {
        while (!stopping_) {
          work(i);
          ++rounds_;
        }
      });
    }
  }
  int rounds() const { return rounds_; }
  void stop() {
    stopping_ = true;
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

 private:
  std::atomic<bool> stopping_{false};
  std::atomic<int> rounds_{0};
  std::vector<std::thread> threads_;
};

void check_witness(Case& e, const Witness& witness,
                   const std::function<void(Attack&)>& begin_attack) {
  if (e.lab().has_failpoints()) SKIP("times of a build with sanitizers say nothing");
  const Pod pod = e.run_pod(e.host_network_config());
  (void)witness_times(e, pod, witness);
  const Times alone = witness_times(e, pod, witness);
  Attack attack;
  begin_attack(attack);
  const Times beside = witness_times(e, pod, witness);
  attack.stop();
  UNSCOPED_INFO(attack.rounds() << " rounds of the attacker");
  check_bound("create and start", alone.start, beside.start);
  check_bound("exec", alone.exec, beside.exec);
  check_bound("stop", alone.stop, beside.stop);
}

void check_witness(Case& e, const std::function<void(Attack&)>& begin_attack) {
  check_witness(e, {e.container_config({"sleep", "3600"}), {"true"}}, begin_attack);
}

// A container's whole life in an attacker's pod, of thread `i`; it need not succeed.
void live_once(Case& e, const Pod& pod, cri::ContainerConfig config, int i,
               const std::vector<std::string>& exec) {
  config.mutable_metadata()->set_name(fmt::format("attacker-{}", i));
  const auto id = e.cri().create_container(pod.id, config, pod.config);
  if (!id) return;
  (void)e.cri().start_container(*id);
  (void)e.cri().exec_sync(*id, exec, 1);
  (void)e.cri().stop_container(*id, 0);
  (void)e.cri().remove_container(*id);
}

cri::ContainerConfig throttled(Case& e, std::int64_t quota_us) {
  cri::ContainerConfig config = e.container_config({"sleep", "3600"});
  cri::LinuxContainerResources& limits = *config.mutable_linux()->mutable_resources();
  limits.set_cpu_period(100'000);
  limits.set_cpu_quota(quota_us);
  return config;
}

}  // namespace

TEST_CASE("D1 U1: probes of a CPU-throttled container hold up no other pod",
          "[e2e][table][neighbour]") {
  run_case([](Case& e) {
    const Pod attacker = e.run_pod(e.host_network_config());
    std::vector<Container> containers;
    for (int i = 0; i < 4; ++i) containers.push_back(e.start(attacker, throttled(e, 1000)));
    check_witness(e, [&](Attack& attack) {
      attack.add(12, [&](int i) {
        (void)e.cri().exec_sync(containers[static_cast<std::size_t>(i) % 4].id, {"true"}, 1);
      });
      // The first of them are under way.
      std::this_thread::sleep_for(500ms);
    });
  });
}

TEST_CASE("D1: a pod that creates throttled containers holds up no other pod",
          "[e2e][table][neighbour]") {
  run_case([](Case& e) {
    const Pod attacker = e.run_pod(e.host_network_config());
    const cri::ContainerConfig config = throttled(e, 1000);
    check_witness(e, [&](Attack& attack) {
      attack.add(6, [&](int i) { live_once(e, attacker, config, i, {"true"}); });
      std::this_thread::sleep_for(500ms);
    });
  });
}

TEST_CASE("a flood of output by execs holds up no other pod", "[e2e][table][neighbour]") {
  run_case([](Case& e) {
    const Pod attacker = e.run_pod(e.host_network_config());
    cri::ContainerConfig config = throttled(e, 50'000);
    const Container container = e.start(attacker, config);
    check_witness(e, [&](Attack& attack) {
      attack.add(4, [&](int) {
        (void)e.cri().exec_sync(container.id, {"sh", "-c", "head -c 8000000 /dev/zero"}, 5);
      });
    });
  });
}

TEST_CASE("D4: orphans of a pod in the host's PID namespace hold up no other pod",
          "[e2e][table][neighbour]") {
  run_case([](Case& e) {
    cri::PodSandboxConfig config = e.host_network_config();
    namespace_options(config)->set_pid(cri::NODE);
    const Pod attacker = e.run_pod(config);
    cri::ContainerConfig forker = throttled(e, 50'000);
    namespace_options(forker)->set_pid(cri::NODE);
    forker.clear_command();
    for (const char* word : {"sh", "-c", "echo up; while :; do (true &); done"}) {
      forker.add_command(word);
    }
    const Container container = e.start(attacker, forker);
    e.await_output(container, "up");
    check_witness(e, [](Attack&) {});
    if (!e.ours()) return;
    // They are the keeper's, which reaps them at once.
    const std::string keeper = std::to_string(e.lab().keeper_pid());
    const std::string children =
        read_text(fmt::format("/proc/{}/task/{}/children", keeper, keeper));
    CHECK(std::count(children.begin(), children.end(), ' ') < 200);
    REQUIRE(e.cri().stop_container(container.id, 0));
  });
}

TEST_CASE("D2: a pod that fills its files and its /dev/shm holds up no other pod",
          "[e2e][table][neighbour]") {
  run_case([](Case& e) {
    const Pod attacker = e.run_pod(e.host_network_config());
    const Container container = e.start(attacker, throttled(e, 50'000));
    check_witness(e, [&](Attack& attack) {
      attack.add(2, [&](int) {
        (void)e.cri().exec_sync(
            container.id,
            {"sh", "-c", "cat /dev/zero >/dev/shm/fill; cat /dev/zero >/etc/resolv.conf"}, 5);
      });
    });
  });
}

TEST_CASE("D1 wasm: a pod of throttled modules holds up no other pod", "[e2e][wasm][neighbour]") {
  run_wasm_case([](Case& e) {
    const Pod attacker = e.run_pod(e.host_network_config());
    cri::ContainerConfig config = wasm_config(e, {"/tool.wasm", "sleep", "3600"});
    config.mutable_linux()->mutable_resources()->set_cpu_period(100'000);
    config.mutable_linux()->mutable_resources()->set_cpu_quota(1000);
    const Witness witness{wasm_config(e, {"/tool.wasm", "sleep", "3600"}),
                          {"/tool.wasm", "exit", "0"}};
    check_witness(e, witness, [&](Attack& attack) {
      attack.add(6, [&](int i) { live_once(e, attacker, config, i, witness.exec); });
      std::this_thread::sleep_for(500ms);
    });
  });
}

}  // namespace kuasar::test
