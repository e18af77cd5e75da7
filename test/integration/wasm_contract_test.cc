#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <cerrno>
#include <filesystem>
#include <string>

#include "base/files.h"
#include "os/pty.h"
#include "support/filtered_child.h"
#include "support/wasm_cache_fixture.h"
#include "support/wasm_engine.h"
#include "support/wasm_worker.h"
#include "worker/seccomp.h"

// What docs/WASM.md promises to a module, whichever engine runs it.

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;

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

TEST_CASE("U5: isatty() is true for the streams of a terminal, and false for pipes",
          "[root][wasm]") {
  const wasm::EngineConfig engine = each_engine();
  INFO(engine.name);
  WasmWorker worker(engine);
  wasm::Plan plan = WasmWorker::plan({"/tool.wasm", "ttys"});
  plan.terminal = true;
  const WasmWorker::Ended terminal = worker.run_plan(plan);
  CHECK(terminal.refusal == "");
  CHECK(terminal.out == "0: tty\r\n1: tty\r\n2: tty\r\n");
  const std::string pipes = worker.run({"/tool.wasm", "ttys"}).out;
  CHECK(pipes.ends_with("1: no tty\n2: no tty\n"));
}

// In a process of its own: the filter stays.
TEST_CASE("U5: the filter of a wasm child lets ioctl ask whether a standard stream is a terminal",
          "[wasm]") {
  const Result<os::Terminal> terminal = os::make_terminal();
  REQUIRE(terminal);
  const int other = terminal->master.get();
  const bool compiles = GENERATE(false, true);
  const int wrong_calls = in_filtered_child(wasm::build_filter({.compiles = compiles}), [&] {
    char buffer[256];
    const auto refused = [&](int fd, unsigned long request) {
      return ::syscall(SYS_ioctl, fd, request, buffer) == -1 && errno == EPERM;
    };
    int wrong = 0;
    for (int fd = 0; fd < 3; ++fd) {
      if (refused(fd, TCGETS)) wrong |= 1;
      if (!refused(fd, TCSETS) || !refused(fd, TIOCSTI)) wrong |= 2;
      if (!refused(fd, TIOCSCTTY) || !refused(fd, FIONBIO)) wrong |= 4;
    }
    if (!refused(other, TCGETS) || !refused(-1, TCGETS)) wrong |= 8;
    return wrong;
  });
  CHECK(wrong_calls == 0);
}

TEST_CASE("U6: a standard input that is absent is no terminal, is ready, and is at its end",
          "[root][wasm]") {
  const wasm::EngineConfig engine = each_engine();
  INFO(engine.name);
  WasmWorker worker(engine);
  const WasmWorker::Ended ended =
      worker.run({"/tool.wasm", "ttys", "poll", "stdin", "print", "end"});
  CHECK(ended.refusal == "");
  CHECK(ended.out == "0: no tty\n1: no tty\n2: no tty\nready\nend\n");
  CHECK(ended.err == "");
  CHECK(ended.code == 0);
}

TEST_CASE("U6: so it is for a child of a module's zygote", "[root][wasm]") {
  wasm::EngineConfig engine = each_engine();
  INFO(engine.name);
  engine.aot = true;
  WasmCacheFixture f(engine);
  f.warm("/tool.wasm");
  CHECK(f.one({"/tool.wasm", "ttys", "poll", "stdin"}).first ==
        "0: no tty\n1: no tty\n2: no tty\nready\n");
  CHECK(f.driver->module_zygotes() == 1);
}

TEST_CASE("U7: relative links that stay below the root are followed, all others are refused",
          "[root][wasm]") {
  const wasm::EngineConfig engine = each_engine();
  INFO(engine.name);
  WasmWorker worker(engine);
  char name[] = "/tmp/kuasar-links-XXXXXX";
  const fs::path root = ::mkdtemp(name);
  REQUIRE(::chmod(root.c_str(), 0755) == 0);
  worker.root = root;
  fs::create_directories(root / "etc" / "deep");
  REQUIRE(write_file(root / "etc" / "file", "the file\n", 0644));
  fs::copy_file(wasm_modules() / "tool.wasm", root / "tool.wasm");
  fs::create_symlink("etc/file", root / "down");
  fs::create_symlink("etc", root / "dir");
  fs::create_symlink("../file", root / "etc" / "deep" / "up");
  fs::create_symlink("../../etc/file", root / "etc" / "deep" / "round");
  fs::create_symlink("/etc/file", root / "absolute");
  fs::create_symlink("../etc/file", root / "above");
  fs::create_symlink("/tool.wasm", root / "module");
  const auto cat = [&](const std::string& path) {
    const WasmWorker::Ended ended = worker.run({"/tool.wasm", "cat", path});
    return ended.code == 0 ? ended.out : ended.err;
  };
  for (const char* path :
       {"/down", "/dir/file", "/etc/deep/up", "/etc/deep/round", "/dir/../etc/file"}) {
    CHECK(cat(path) == "the file\n");
  }
  for (const std::string path : {"/absolute", "/above", "/../etc/file"}) {
    CHECK(cat(path) == "cat " + path + ": Operation not permitted\n");
  }
  // The module itself is found by the kernel.
  CHECK(worker.run({"/module", "exit", "3"}).code == 3);
  fs::remove_all(root);
}

}  // namespace kuasar::test
