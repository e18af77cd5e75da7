#include <fmt/format.h>

#include <catch2/catch_test_macros.hpp>
#include <filesystem>
#include <string>
#include <vector>

#include "e2e/table.h"
#include "support/wait.h"
#include "support/wasm_engine.h"

// Native code of modules, kept by the daemon for the next container (docs/WASM.md).

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

struct CacheDir {
  fs::path path;

  CacheDir() {
    char name[] = "/tmp/kuasar-aot-XXXXXX";
    path = ::mkdtemp(name);
  }
  ~CacheDir() { fs::remove_all(path); }
  void clear() const {
    for (const auto& entry : fs::directory_iterator(path)) fs::remove(entry.path());
  }
  std::size_t files() const {
    std::size_t count = 0;
    for (const auto& entry : fs::directory_iterator(path)) {
      count += entry.path().filename().native().starts_with(".") ? 0 : 1;
    }
    return count;
  }
};

void run_cached_case(const std::function<void(Case&, const CacheDir&)>& body) {
  for_each_engine([&](const wasm::EngineConfig& engine) {
    const CacheDir cache;
    run_wasm_case_with(engine_toml(engine, cache.path), [&](Case& e) {
      cache.clear();
      body(e, cache);
    });
  });
}

Finished run_tool(Case& e, const Pod& pod, std::vector<std::string> words) {
  words.insert(words.begin(), "/tool.wasm");
  return e.run(pod, wasm_config(e, words));
}

bool compiling() {
  return !processes_with("kuasar-wasm-compiler").empty();
}

}  // namespace

TEST_CASE("wasm: a module's native code is made beside its first container, for the next ones",
          "[e2e][wasm]") {
  run_cached_case([](Case& e, const CacheDir& cache) {
    const Pod pod = e.run_pod();
    CHECK(run_tool(e, pod, {"print", "first", "exit", "3"}).status.exit_code() == 3);
    REQUIRE(wait_until([&] { return cache.files() == 1 && !compiling(); }, 60s));
    const Finished next = run_tool(e, pod, {"print", "next", "trap"});
    CHECK(next.log.out == "next\n");
    CHECK(next.status.exit_code() == 134);
    // Also of an exec's module, and for the next daemon.
    const Container sleeper = e.start(pod, wasm_config(e, {"/tool.wasm", "sleep", "3600"}));
    const auto said = e.cri().exec_sync(sleeper.id, {"/hello.wasm"}, 20);
    REQUIRE(said);
    CHECK(said->stdout() == "hello from wasm\n");
    REQUIRE(wait_until([&] { return cache.files() == 2 && !compiling(); }, 60s));
    e.lab().kill_sandboxer();
    e.lab().start_sandboxer();
    CHECK(run_tool(e, pod, {"exit", "4"}).status.exit_code() == 4);
    CHECK(cache.files() == 2);
  });
}

TEST_CASE("wasm: a daemon that dies while a module is compiled leaves no compiler and half a file",
          "[e2e][wasm]") {
  run_cached_case([](Case& e, const CacheDir& cache) {
    const Pod pod = e.run_pod();
    CHECK(run_tool(e, pod, {"exit", "3"}).status.exit_code() == 3);
    (void)wait_until([&] { return compiling() || cache.files() > 0; }, 10s);
    e.lab().kill_sandboxer();
    e.lab().start_sandboxer();
    CHECK(wait_until([&] { return !compiling(); }, 10s));
    CHECK(run_tool(e, pod, {"print", "on", "exit", "5"}).log.out == "on\n");
    CHECK(wait_until([&] { return cache.files() == 1 && !compiling(); }, 60s));
  });
}

}  // namespace kuasar::test
