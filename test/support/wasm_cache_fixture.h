#pragma once

#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "async/task_group.h"
#include "os/process_usage.h"
#include "support/wasm_driver_fixture.h"

namespace kuasar::test {

/// A driver of one engine with a cache of native code; new containers are of one image and have
/// zygotes of their modules.
struct WasmCacheFixture : WasmDriverFixture {
  wasm::EngineConfig config;
  std::unique_ptr<TaskGroup> background;
  int count = 0;

  explicit WasmCacheFixture(wasm::EngineConfig engine_config,
                            wasm::ModuleZygotes::Limits limits = {})
      : config(std::move(engine_config)) {
    engine = config.name + "/module";
    image = "registry.example/modules:1";
    begin(limits);
  }
  ~WasmCacheFixture() { end(); }

  void begin(wasm::ModuleZygotes::Limits limits = {}) {
    wasm::WasmDriver::Limits all;
    all.zygotes = limits;
    restart({config}, all);
    REQUIRE(driver->open_cache(dir / "aot"));
    background = std::make_unique<TaskGroup>(io.executor());
    background->spawn(driver->run_cache());
    background->spawn(driver->run_zygotes());
  }
  void end() {
    const auto stop = [&]() -> Task<> {
      background->cancel();
      co_await background->join();
    };
    io.run(stop());
  }
  std::size_t cached() const { return cached_code(dir / "aot").size(); }
  // Waits for a condition, while the driver works.
  template <typename F>
  bool await(F condition, std::chrono::milliseconds limit) {
    const auto until = std::chrono::steady_clock::now() + limit;
    while (!condition() && std::chrono::steady_clock::now() < until) {
      io.run(sleep_for(std::chrono::milliseconds(5)));
    }
    return condition();
  }
  // Its code comes into the cache, and then is known by the name of the image. A module that does
  // not end is not begun.
  void warm(const std::string& module, bool ends = true) {
    const auto have_one = [&] {
      if (ends) {
        REQUIRE(one({module}).second == 0);
        return;
      }
      const std::string id = next_id();
      create(id, {module});
      REQUIRE(io.run(driver->remove(id)));
    };
    const std::size_t before = cached();
    have_one();
    REQUIRE(await([&] { return cached() == before + 1; }, std::chrono::seconds(60)));
    have_one();
    REQUIRE(driver->module_zygotes() == 0);
  }
  std::string next_id() { return fmt::format("c{}", ++count); }
  // A container's output and exit code.
  std::pair<std::string, int> one(const std::vector<std::string>& args) {
    return live(plan(next_id(), args));
  }
  std::pair<std::string, int> live(task::ContainerPlan container) {
    const std::string id = container.id;
    keep_output(id);
    create(std::move(container));
    REQUIRE(io.run(driver->start(id)));
    const int code = exit_code(id);
    return {output(id), code};
  }
  // The parent of all of them is this process: by their names.
  std::vector<pid_t> zygotes() const {
    std::vector<pid_t> pids;
    for (const pid_t pid : os::all_pids()) {
      if (status_of(pid, "Name") == "kuasar-wasm-mod" &&
          status_of(pid, "PPid") == std::to_string(::getpid()) &&
          !status_of(pid, "State").starts_with("Z")) {
        pids.push_back(pid);
      }
    }
    return pids;
  }
  bool await_zygotes(std::size_t number,
                     std::chrono::milliseconds limit = std::chrono::seconds(20)) {
    return await([&] { return zygotes().size() == number && driver->module_zygotes() == number; },
                 limit);
  }
};

}  // namespace kuasar::test
