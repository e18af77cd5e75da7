#include "bench/bench.h"

#include <fmt/format.h>
#include <signal.h>

#include <algorithm>
#include <array>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "base/files.h"
#include "base/wait.h"
#include "bench/cpu_meter.h"
#include "bench/cri_client.h"
#include "bench/pods.h"
#include "ctl/daemons.h"
#include "os/process_events.h"
#include "os/process_usage.h"

namespace kuasar::bench {
namespace {

using namespace std::chrono_literals;

constexpr std::array<Side, 4> kOrder{Side::kOurs, Side::kPeer, Side::kPeer, Side::kOurs};
constexpr int kCniRounds = 3;
constexpr int kBurst = 50;
constexpr int kBurstRounds = 2;
constexpr int kFillThreads = 4;
constexpr int kReadyRepeats = 5;
constexpr int kCalls = 200;
constexpr auto kPatience = 60s;
constexpr auto kRest = 6s;
constexpr double kMebibyte = 1 << 20;

double milliseconds(Clock::duration time) {
  return std::chrono::duration<double, std::milli>(time).count();
}

// Calls work(0) ... work(count - 1) on some threads; the failures, in no order.
std::vector<std::string> on_threads(int count, int threads,
                                    const std::function<Result<>(int)>& work) {
  std::vector<std::string> failures;
  std::mutex mutex;
  std::vector<std::thread> pool;
  for (int first = 0; first < std::min(count, threads); ++first) {
    pool.emplace_back([&, first] {
      for (int i = first; i < count; i += threads) {
        const Result<> done = work(i);
        if (done) continue;
        const std::lock_guard<std::mutex> lock(mutex);
        failures.push_back(done.error().message);
      }
    });
  }
  for (std::thread& thread : pool) thread.join();
  return failures;
}

class Bench {
 public:
  Bench(const Options& options, CriClient& cri)
      : options_(options),
        sides_{Pods(cri, plan(options.handler, false)), Pods(cri, plan(options.peer, false))},
        cni_{Pods(cri, plan(options.handler, true)), Pods(cri, plan(options.peer, true))} {}

  Result<Samples> run() {
    CHECK_OK(find_daemon());
    open_meters();
    CHECK_OK(warm_up());
    samples_.add("memory_0", Side::kOurs, our_memory().private_dirty);
    latencies();
    networks();
    bursts();
    our_density();
    peer_density();
    return std::move(samples_);
  }

 private:
  struct OurMemory {
    double private_dirty = 0;
    double rss = 0;
  };

  PodPlan plan(const std::string& handler, bool cni) const {
    return {handler, options_.image, options_.cgroup_parent, options_.scratch, cni};
  }
  const Pods& pods(Side side) const { return sides_[static_cast<std::size_t>(side)]; }

  void tell(const std::string& phase, const std::string& words) const {
    if (options_.progress) options_.progress(phase, words);
  }

  // Counts a failed operation; whether it succeeded.
  template <typename T>
  bool good(const Result<T>& result, const std::string& what) {
    if (!result) samples_.add_failure(what + ": " + result.error().message);
    return result.has_value();
  }

  Result<> find_daemon() {
    const ctl::DaemonHealth health = ctl::ask_health(options_.daemon);
    if (!health.error.empty()) return fail(Code::kUnavailable, "{}", health.error);
    daemon_ = health.health.pid();
    keeper_ = health.health.keeper_pid();
    return {};
  }

  void open_meters() {
    const pid_t containerd = ctl::listener_of(options_.containerd);
    auto cpu = CpuMeter::of({containerd, daemon_, keeper_});
    if (cpu) cpu_ = std::move(*cpu);
    if (!cpu) {
      for (const char* row :
           {"cpu_exec", "cpu_sandbox", "cpu_pod", "cpu_10", "cpu_200", "cpu_500"}) {
        samples_.skip(row, cpu.error().message);
      }
    }
    auto events = os::ProcessEvents::open();
    if (events) events_.emplace(std::move(*events));
    if (!events) {
      for (const char* row : {"execs", "execs_pod"}) samples_.skip(row, events.error().message);
    }
  }

  double cpu() const { return cpu_ ? cpu_->seconds() : 0; }

  Result<> warm_up() {
    for (const Side side : {Side::kOurs, Side::kPeer}) {
      TRY(const BenchPod pod, pods(side).run_whole());
      CHECK_OK(pods(side).remove_whole(pod));
    }
    tell("warm-up", fmt::format("a pod of {} and one of {}", options_.handler, options_.peer));
    return {};
  }

  // ----- one pod at a time

  void latencies() {
    for (int round = 0; round < options_.rounds; ++round) {
      for (const Side side : kOrder) one_life(side);
    }
    tell("latency", fmt::format("{} rounds of A B B A, each a pod's whole life", options_.rounds));
  }

  template <typename Work>
  bool timed(const char* row, Side side, Work work) {
    const auto begun = Clock::now();
    const auto result = work();
    if (!good(result, row)) return false;
    samples_.add(row, side, milliseconds(Clock::now() - begun));
    return true;
  }

  void one_life(Side side) {
    const Pods& makes = pods(side);
    const auto before = os::all_pids();
    count_execs();
    const double cpu_begin = cpu();
    const auto begun = Clock::now();
    auto pod = makes.run_pod();
    if (!good(pod, "RunPodSandbox")) return;
    samples_.add("run_pod", side, milliseconds(Clock::now() - begun));
    const double cpu_sandbox = cpu();
    note_execs("execs", side);
    const auto kept = kept_since(before);
    samples_.add("processes", side, static_cast<double>(kept));
    bool running = timed("create", side, [&] { return makes.create(*pod); }) &&
                   timed("start", side, [&] { return makes.start(*pod); });
    if (running) {
      const auto output = makes.await_output(*pod);
      running = good(output, "first output");
      if (running) samples_.add("first_output", side, output->count() * 1000);
    }
    if (running) life_of_container(side, *pod);
    auto ended = Clock::now();
    const bool stopped = good(makes.stop(*pod), "StopPodSandbox");
    const bool removed = good(makes.remove(*pod), "RemovePodSandbox");
    if (!stopped || !removed) return;
    samples_.add("stop_remove", side, milliseconds(Clock::now() - ended));
    note_execs("execs_pod", side);
    if (!cpu_) return;
    samples_.add("cpu_sandbox", side, (cpu_sandbox - cpu_begin) * 1000);
    samples_.add("cpu_pod", side, (cpu() - cpu_begin) * 1000);
  }

  void life_of_container(Side side, const BenchPod& pod) {
    const Pods& makes = pods(side);
    const double cpu_begin = cpu();
    if (timed("exec", side, [&] { return makes.exec(pod); }) && cpu_) {
      samples_.add("cpu_exec", side, (cpu() - cpu_begin) * 1000);
    }
    timed("stop_container", side, [&]() -> Result<> {
      CHECK_OK(makes.stop_container(pod));
      return makes.remove_container(pod);
    });
  }

  void count_execs() {
    if (events_) (void)events_->take();
    execs_ = 0;
  }
  // Since count_execs().
  void note_execs(const char* row, Side side) {
    if (!events_) return;
    const auto counts = events_->take();
    if (!good(counts, row)) return;
    execs_ += counts->execs;
    samples_.add(row, side, execs_);
  }

  // What RunPodSandbox left running: processes that were not there before, but for those of others
  // that end at once.
  static std::size_t kept_since(const std::vector<pid_t>& before) {
    const std::set<pid_t> old(before.begin(), before.end());
    std::size_t kept = 0;
    for (const pid_t pid : os::all_pids()) {
      const auto memory = os::memory_of(pid);
      // A kernel thread and a zombie have none.
      if (old.count(pid) == 0 && memory && memory->rss > 0) ++kept;
    }
    return kept;
  }

  // ----- CNI's network

  void networks() {
    for (int round = 0; round < kCniRounds; ++round) {
      for (const Side side : kOrder) {
        const Pods& makes = cni_[static_cast<std::size_t>(side)];
        const auto begun = Clock::now();
        const auto pod = makes.run_pod();
        if (!pod && round == 0) {
          samples_.skip("run_pod_cni", pod.error().message);
          return;
        }
        if (!good(pod, "RunPodSandbox (CNI)")) return;
        samples_.add("run_pod_cni", side, milliseconds(Clock::now() - begun));
        timed("stop_remove_cni", side, [&]() -> Result<> {
          CHECK_OK(makes.stop(*pod));
          return makes.remove(*pod);
        });
      }
    }
    tell("network", fmt::format("{} rounds of A B B A with CNI", kCniRounds));
  }

  // ----- many at once

  void bursts() {
    for (int round = 0; round < kBurstRounds; ++round) {
      for (const Side side : kOrder) {
        const auto begun = Clock::now();
        const auto made = fill(side, kBurst, kBurst);
        const std::chrono::duration<double> took = Clock::now() - begun;
        if (made.size() == kBurst) samples_.add("burst", side, kBurst / took.count());
        clear(side, made);
      }
    }
    tell("burst", fmt::format("{} rounds of A B B A, {} pods at once", kBurstRounds, kBurst));
  }

  std::vector<BenchPod> fill(Side side, std::size_t count, int threads) {
    std::vector<BenchPod> made;
    std::mutex mutex;
    const auto failures = on_threads(static_cast<int>(count), threads, [&](int) -> Result<> {
      TRY(BenchPod pod, pods(side).run_whole());
      const std::lock_guard<std::mutex> lock(mutex);
      made.push_back(std::move(pod));
      return {};
    });
    for (const std::string& words : failures) samples_.add_failure("pod: " + words);
    return made;
  }

  void clear(Side side, const std::vector<BenchPod>& made) {
    const auto failures = on_threads(static_cast<int>(made.size()), kFillThreads, [&](int i) {
      return pods(side).remove_whole(made[static_cast<std::size_t>(i)]);
    });
    for (const std::string& words : failures) samples_.add_failure("removal: " + words);
  }

  // ----- many at a time

  // At rest: the daemon gives back what a burst has left within seconds (daemon/give_back).
  OurMemory our_memory() const {
    std::this_thread::sleep_for(kRest);
    os::MemoryUse use;
    for (const pid_t pid : {daemon_, keeper_}) {
      if (const auto one = os::memory_of(pid)) use += *one;
    }
    return {static_cast<double>(std::max(use.private_dirty, use.anonymous)) / kMebibyte,
            static_cast<double>(use.rss) / kMebibyte};
  }

  void our_density() {
    std::vector<BenchPod> all;
    double at_50 = 0;
    double own_10 = 0;
    for (const int count : {10, 50, 100, 200, 500}) {
      if (count > options_.most_pods) break;
      for (BenchPod& pod :
           fill(Side::kOurs, static_cast<std::size_t>(count) - all.size(), kFillThreads)) {
        all.push_back(std::move(pod));
      }
      if (all.size() != static_cast<std::size_t>(count)) break;
      const OurMemory memory = our_memory();
      if (count == 10) {
        own_10 = beside(Side::kOurs, "run_pod_10", "cpu_10");
        samples_.add("own_10", Side::kOurs, own_10);
      }
      if (count == 50) {
        at_50 = memory.private_dirty;
        samples_.add("memory_50", Side::kOurs, memory.private_dirty);
        samples_.add("rss_50", Side::kOurs, memory.rss);
        samples_.add("threads_50", Side::kOurs,
                     os::threads_of(daemon_).value_or(0) + os::threads_of(keeper_).value_or(0));
      }
      if (count == 100) {
        beside(Side::kOurs, "run_pod_100", "cpu_100");
        if (const auto keeper = os::memory_of(keeper_)) {
          samples_.add("keeper_100", Side::kOurs, static_cast<double>(keeper->pss) / kMebibyte);
        }
        ready_again();
      }
      if (count == 200) {
        calls(Side::kOurs, all);
        beside(Side::kOurs, "run_pod_200", "cpu_200");
      }
      if (count == 500) {
        samples_.add("memory_500", Side::kOurs, memory.private_dirty);
        samples_.add("memory_pod", Side::kOurs, (memory.private_dirty - at_50) * 1024 / 450);
        const double own_500 = beside(Side::kOurs, "run_pod_500", "cpu_500");
        samples_.add("own_500", Side::kOurs, own_500);
        if (own_10 > 0) samples_.add("growth", Side::kOurs, own_500 / own_10);
      }
      tell("density", fmt::format("{} pods of {}: {:.1f} MiB private", count, options_.handler,
                                  memory.private_dirty));
    }
    clear(Side::kOurs, all);
    tell("density", fmt::format("removed {} pods of {}", all.size(), options_.handler));
  }

  // CPU time of our daemon and keeper, without what they start.
  double own_cpu() const {
    return os::thread_seconds_of(daemon_).value_or(0) + os::thread_seconds_of(keeper_).value_or(0);
  }

  // Some pods more, one at a time, beside those that are there. `row` is of RunPodSandbox's time,
  // `cpu_row` of the CPU time of a pod's whole life. Gives daemon's and keeper's part of that, in
  // ms.
  double beside(Side side, const char* row, const char* cpu_row) {
    std::vector<double> used;
    const double own_begin = own_cpu();
    for (int i = 0; i < 10; ++i) {
      const double begin = cpu();
      auto pod = Result<BenchPod>(fail(Code::kUnknown, "not made"));
      timed(row, side, [&]() -> Result<> {
        pod = pods(side).run_pod();
        if (!pod) return fail(pod.error());
        return {};
      });
      if (!pod) continue;
      const auto made = pods(side).create(*pod);
      if (good(made, "CreateContainer")) good(pods(side).start(*pod), "StartContainer");
      good(pods(side).remove_whole(*pod), "removal");
      used.push_back((cpu() - begin) * 1000);
    }
    if (used.empty()) return 0;
    if (cpu_) {
      for (const double one : used) samples_.add(cpu_row, side, one);
    }
    return (own_cpu() - own_begin) * 1000 / static_cast<double>(used.size());
  }

  void ready_again() {
    if (!options_.kill) {
      samples_.skip("ready", "the daemon is killed only when you say --kill");
      return;
    }
    for (int i = 0; i < kReadyRepeats; ++i) {
      const pid_t old = daemon_;
      ::kill(old, SIGKILL);
      const auto begun = Clock::now();
      if (options_.restart && !good(options_.restart(), "restart")) return;
      const bool back = wait_until(
          [&] {
            const ctl::DaemonHealth health = ctl::ask_health(options_.daemon);
            daemon_ = health.health.pid();
            return health.error.empty() && daemon_ != old;
          },
          kPatience);
      if (!back) {
        samples_.add_failure("the daemon does not come back after kill -9");
        return;
      }
      samples_.add("ready", Side::kOurs, milliseconds(Clock::now() - begun));
    }
    good(find_daemon(), "health");
  }

  void calls(Side side, const std::vector<BenchPod>& all) {
    for (int i = 0; i < kCalls; ++i) {
      const auto& pod = all[static_cast<std::size_t>(i) % all.size()];
      timed("stats", side, [&] { return pods(side).cri().container_stats(pod.container); });
      timed("list", side, [&] { return pods(side).cri().list_pods(); });
    }
  }

  void peer_density() {
    const std::size_t pods_wanted = 50;
    const auto before = os::all_pids();
    std::vector<BenchPod> all = fill(Side::kPeer, 10, kFillThreads);
    beside(Side::kPeer, "run_pod_10", "cpu_10");
    for (BenchPod& pod : fill(Side::kPeer, pods_wanted - all.size(), kFillThreads)) {
      all.push_back(std::move(pod));
    }
    if (all.size() == pods_wanted) peer_memory(before);
    if (options_.most_pods >= 200) {
      for (BenchPod& pod : fill(Side::kPeer, 200 - all.size(), kFillThreads)) {
        all.push_back(std::move(pod));
      }
      if (all.size() == 200) {
        calls(Side::kPeer, all);
        beside(Side::kPeer, "run_pod_200", "cpu_200");
      }
    }
    clear(Side::kPeer, all);
    tell("density", fmt::format("{} pods of {}, and removed", all.size(), options_.peer));
  }

  // Shims and pause processes: all that came but the workloads. Only they use their two programs,
  // so that their PSS is what our RSS is: each page once.
  void peer_memory(const std::vector<pid_t>& before) {
    const std::set<pid_t> old(before.begin(), before.end());
    os::MemoryUse use;
    unsigned threads = 0;
    for (const pid_t pid : os::all_pids()) {
      if (old.count(pid) > 0) continue;
      const std::string name = read_file(fmt::format("/proc/{}/comm", pid)).value_or("");
      if (name != "containerd-shim\n" && name != "pause\n") continue;
      if (const auto one = os::memory_of(pid)) use += *one;
      threads += os::threads_of(pid).value_or(0);
    }
    samples_.add("memory_50", Side::kPeer,
                 static_cast<double>(std::max(use.private_dirty, use.anonymous)) / kMebibyte);
    samples_.add("rss_50", Side::kPeer, static_cast<double>(use.pss) / kMebibyte);
    samples_.add("threads_50", Side::kPeer, threads);
  }

  const Options& options_;
  std::array<Pods, 2> sides_;
  std::array<Pods, 2> cni_;
  Samples samples_;
  std::optional<CpuMeter> cpu_;
  std::optional<os::ProcessEvents> events_;
  double execs_ = 0;
  pid_t daemon_ = 0;
  pid_t keeper_ = 0;
};

}  // namespace

Result<Samples> measure(const Options& options) {
  if (ctl::listener_of(options.containerd) == 0) {
    return fail(
        Code::kUnavailable,
        "nobody answers on {}: is containerd running, and are you root? (--containerd names "
        "another socket)",
        options.containerd.native());
  }
  CriClient cri(options.containerd);
  if (auto version = cri.version(10s); !version) {
    return fail(
        std::move(version).error().context("containerd at {}", options.containerd.native()));
  }
  TRY(const bool known, cri.has_image(options.image));
  if (!known) {
    return fail(Code::kNotFound, "containerd has no image {}: pull it first (crictl pull {})",
                options.image, options.image);
  }
  return Bench(options, cri).run();
}

}  // namespace kuasar::bench
