#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <string>

#include "support/wasm_cache_fixture.h"
#include "support/wasm_engine.h"
#include "support/wasm_worker.h"

// What docs/WASM.md promises to a module, whichever engine runs it.

namespace kuasar::test {
namespace {

wasm::EngineConfig each_engine() {
  const std::string name = GENERATE("wasmedge", "wasmtime");
  wasm::EngineConfig engine = lab_engine();
  if (name == "wasmedge") return engine;
  std::string reason;
  const auto found = find_wasmtime(reason);
  if (!found) SKIP(reason);
  return *found;
}

}  // namespace

TEST_CASE("U4: the exit code is the low 8 bits of proc_exit, without a line of a trap",
          "[root][wasm]") {
  const wasm::EngineConfig engine = each_engine();
  INFO(engine.name);
  WasmWorker worker(engine);
  for (const int status : {0, 1, 125, 126, 127, 128, 255, 256, 257, -1, -2147483647}) {
    INFO("exit(" << status << ")");
    const WasmWorker::Ended ended =
        worker.run({"/tool.wasm", "print", "before", "exit", std::to_string(status)});
    CHECK(ended.refusal == "");
    CHECK(ended.code == (status & 0xff));
    CHECK(ended.out == "before\n");
    CHECK(ended.err == "");
  }
  const WasmWorker::Ended trap = worker.run({"/tool.wasm", "trap"});
  CHECK(trap.code == 134);
  CHECK(trap.err.starts_with("wasm trap: "));
}

TEST_CASE("U4: so it is for an exec and for a child of a module's zygote", "[root][wasm]") {
  wasm::EngineConfig engine = each_engine();
  INFO(engine.name);
  engine.aot = true;
  WasmCacheFixture f(engine);
  f.warm("/tool.wasm");
  CHECK(f.one({"/tool.wasm", "exit", "255"}).second == 255);
  CHECK(f.one({"/tool.wasm", "exit", "127"}).second == 127);
  CHECK(f.driver->module_zygotes() == 1);

  const std::string id = f.next_id();
  f.create(id, {"/endless.wasm"});
  const std::string file = f.dir / id / "exec.json";
  REQUIRE(write_file(file, f.process({"/tool.wasm", "exit", "126"})));
  const auto streams = f.stdio(id, "e");
  task::ExecPlan exec;
  exec.ref = {id, "e"};
  exec.process_file = file;
  REQUIRE(f.io.run(f.driver->exec(std::move(exec), *streams)));
  CHECK(f.exit_code(id, "e") == 126);
  f.driver->forget_exec({id, "e"});
}

}  // namespace kuasar::test
