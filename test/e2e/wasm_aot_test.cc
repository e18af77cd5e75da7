#include <fmt/format.h>

#include <catch2/catch_test_macros.hpp>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "base/files.h"
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
  std::size_t files() const { return cached_code(path).size(); }
};

void run_cached_case(const std::function<void(Case&, const CacheDir&)>& body,
                     const std::string& more = "") {
  for_each_engine([&](const wasm::EngineConfig& engine) {
    const CacheDir cache;
    run_wasm_case_with(engine_toml(engine, cache.path) + more, [&](Case& e) {
      cache.clear();
      body(e, cache);
    });
  });
}

Finished run_tool(Case& e, const Pod& pod, std::vector<std::string> words) {
  words.insert(words.begin(), "/tool.wasm");
  return e.run(pod, wasm_config(e, words));
}

// The zygotes of modules: the worker, an engine and the beginning of a digest.
std::set<pid_t> module_zygotes() {
  std::set<pid_t> zygotes;
  for (const pid_t pid : processes_with("kuasar-wasm-worker")) {
    const std::string name = read_file(fmt::format("/proc/{}/comm", pid)).value_or("");
    if (trimmed(name) == "kuasar-wasm-mod") zygotes.insert(pid);
  }
  return zygotes;
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

TEST_CASE("wasm: containers of a module's zygote are like any, and outlive it and the daemon",
          "[e2e][wasm]") {
  run_cached_case(
      [](Case& e, const CacheDir& cache) {
        const auto next_daemon = [&] {
          e.lab().kill_sandboxer();
          CHECK(wait_until([] { return module_zygotes().empty(); }, 10s));
          e.lab().start_sandboxer();
        };
        // One that knows nothing yet.
        next_daemon();
        const Pod pod = e.run_pod();
        CHECK(run_tool(e, pod, {"exit", "3"}).status.exit_code() == 3);
        REQUIRE(wait_until([&] { return cache.files() == 1 && !compiling(); }, 60s));
        CHECK(run_tool(e, pod, {"exit", "4"}).status.exit_code() == 4);
        CHECK(module_zygotes().empty());
        const Finished third = run_tool(e, pod, {"print", "third", "exit", "5"});
        CHECK(third.status.exit_code() == 5);
        CHECK(third.log.out == "third\n");
        REQUIRE(module_zygotes().size() == 1);

        const Container sleeper = e.start(pod, wasm_config(e, {"/tool.wasm", "sleep", "3607"}));
        const Container created = e.create(pod, wasm_config(e, {"/tool.wasm", "exit", "6"}));
        cri::ContainerConfig hungry = wasm_config(e, {"/tool.wasm", "hog"});
        hungry.mutable_linux()->mutable_resources()->set_memory_limit_in_bytes(32 << 20);
        // The guest's memory ends where the cgroup's does, which the engine takes little of here:
        // the first of them tells. Its maximum is another, and so is its zygote.
        const Finished full = e.run(pod, hungry);
        CHECK((full.status.reason() == "OOMKilled" || full.status.exit_code() == 3));
        CHECK(module_zygotes().size() == 2);
        next_daemon();
        REQUIRE(e.cri().start_container(created.id));
        CHECK(e.finish(created).status.exit_code() == 6);
        CHECK(run_tool(e, pod, {"exit", "7"}).status.exit_code() == 7);
        CHECK(run_tool(e, pod, {"exit", "8"}).status.exit_code() == 8);
        CHECK(module_zygotes().size() == 1);
        // The keeper is the parent of its children: the next one has a zygote of its own.
        const std::set<pid_t> orphaned = module_zygotes();
        e.lab().kill_keeper();
        REQUIRE(wait_until([&] { return module_zygotes() != orphaned; }, 10s));
        CHECK(wait_until(
            [&] {
              return run_tool(e, pod, {"exit", "9"}).status.exit_code() == 9;
            },
            20s));
        CHECK(module_zygotes().size() == 1);
        REQUIRE(e.cri().stop_container(sleeper.id, 10));
        CHECK(e.finish(sleeper).status.exit_code() == 143);
      },
      "zygote = \"module\"\n");
}

}  // namespace kuasar::test
