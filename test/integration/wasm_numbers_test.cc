#include <fmt/format.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <filesystem>
#include <iterator>
#include <string>
#include <vector>

#include "async/task_group.h"
#include "os/process_usage.h"
#include "support/wasm_driver_fixture.h"
#include "support/wasm_engine.h"

// What a container of the wasm kind takes, in WasmDriver without containerd and keeper.

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;
using Fixture = WasmDriverFixture;

double milliseconds_since(Clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
}

// A restarted driver of one engine, with code for these modules in its cache if there shall be one.
void prepare(Fixture& f, wasm::EngineConfig engine, bool aot) {
  f.engine = engine.name;
  engine.aot = aot;
  f.restart({engine});
  if (!aot) return;
  REQUIRE(f.driver->open_cache(f.dir / "aot"));
  TaskGroup compiling(f.io.executor());
  compiling.spawn(f.driver->run_cache());
  const auto files = [&] {
    return std::distance(fs::directory_iterator(f.dir / "aot"), fs::directory_iterator());
  };
  std::ptrdiff_t expected = files();
  for (const std::string module : {"/hello.wasm", "/tool.wasm", "/pause.wasm"}) {
    const std::string id = fmt::format("warm{}{}", f.engine, module.substr(1));
    f.create(id, {module});
    ++expected;
    while (files() != expected) f.io.run(sleep_for(10ms));
    REQUIRE(f.io.run(f.driver->remove(id)));
  }
  const auto end = [&]() -> Task<> {
    compiling.cancel();
    co_await compiling.join();
  };
  f.io.run(end());
}

void measure_start(Fixture& f, const std::string& mode, const std::string& module) {
  std::vector<double> times;
  for (int i = 0; i < 100; ++i) {
    const std::string id = fmt::format("{}{}{}", mode, module.substr(1, 4), i);
    const auto streams = f.stdio(id);
    task::ContainerPlan plan = f.plan(id, {module, "print", "x"});
    const auto begin = Clock::now();
    REQUIRE(f.io.run(f.driver->create(std::move(plan), *streams)));
    REQUIRE(f.io.run(f.driver->start(id)));
    times.push_back(milliseconds_since(begin));
    REQUIRE(f.exit_code(id) == 0);
  }
  std::sort(times.begin(), times.end());
  fmt::print("{:<12} {:<12} create + start: p50 {:.2f} ms, p95 {:.2f}, min {:.2f}\n", mode, module,
             times[50], times[95], times[0]);
}

void measure_rate(Fixture& f, const std::string& mode) {
  constexpr int kCount = 300;
  constexpr int kAtOnce = 32;
  int next = 0;
  int failed = 0;
  const auto one_after_the_other = [&]() -> Task<> {
    while (next < kCount) {
      const std::string id = fmt::format("{}p{}", mode, next++);
      const auto streams = f.stdio(id);
      task::ContainerPlan plan = f.plan(id, {"/hello.wasm"});
      Result<> done = co_await f.driver->create(std::move(plan), *streams);
      if (done) done = co_await f.driver->start(id);
      task::ProcessRef ref;
      ref.container = id;
      if (done) co_await f.driver->wait_exit(std::move(ref));
      if (!done) ++failed;
    }
  };
  const auto all = [&]() -> Task<> {
    TaskGroup workers(co_await asio::this_coro::executor);
    for (int i = 0; i < kAtOnce; ++i) workers.spawn(one_after_the_other());
    co_await workers.join();
  };
  const auto begin = Clock::now();
  f.io.run(all(), 120s);
  fmt::print("{:<12} {} hello.wasm to their end, {} at once: {:.0f}/s, {} failed\n", mode, kCount,
             kAtOnce, 1000 * kCount / milliseconds_since(begin), failed);
  CHECK(failed == 0);
}

void measure_memory(Fixture& f, const std::string& mode, const std::string& module) {
  std::vector<std::string> sleepers;
  for (int i = 0; i < 100; ++i) {
    const std::string id = fmt::format("{}s{}{}", mode, module.substr(1, 4), i);
    f.create(id, {module, "sleep", "3600"});
    REQUIRE(f.io.run(f.driver->start(id)));
    sleepers.push_back(id);
  }
  os::MemoryUse sum;
  for (const std::string& id : sleepers) {
    const Result<os::MemoryUse> one = os::memory_of(f.driver->host_pid({id, ""}));
    REQUIRE(one);
    sum += *one;
  }
  fmt::print("{:<12} 100 running {}: {:.2f} MB PSS each\n", mode, module,
             static_cast<double>(sum.pss) / 100 / (1 << 20));
  for (const std::string& id : sleepers) REQUIRE(f.io.run(f.driver->remove(id)));
}

}  // namespace

// tools/dev bench does not know it yet: kuasar_integration_tests '[.wasm-numbers]'.
TEST_CASE("wasm numbers: create and start, starts per second, memory", "[.wasm-numbers]") {
  Fixture f;
  std::string reason;
  for (const auto find : {&find_wasmedge, &find_wasmtime}) {
    const std::optional<wasm::EngineConfig> engine = find(reason);
    if (!engine) continue;
    for (const bool aot : {false, true}) {
      prepare(f, *engine, aot);
      const std::string mode = engine->name + (aot ? "-aot" : "");
      for (const char* module : {"/hello.wasm", "/tool.wasm"}) measure_start(f, mode, module);
      measure_rate(f, mode);
      for (const char* module : {"/pause.wasm", "/tool.wasm"}) measure_memory(f, mode, module);
    }
  }
}

}  // namespace kuasar::test
