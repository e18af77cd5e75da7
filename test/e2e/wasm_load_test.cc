#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <future>
#include <string>

#include "containerd/task/v3/task.pb.h"
#include "e2e/table.h"
#include "support/ttrpc_probe.h"
#include "support/wait.h"

// WebAssembly containers under load: one that is paused, and one whose module is big.

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;
namespace task_api = ::containerd::task::v3;
using Catch::Matchers::ContainsSubstring;

constexpr int kOk = 0;

template <typename Request>
TtrpcProbe::Reply ask(Case& e, const char* method, const Container& container) {
  TtrpcProbe probe(e.lab().dir() / "task.sock");
  Request request;
  request.set_id(container.id);
  return probe.call(method, request);
}

std::uint64_t cpu_time(Case& e, const Container& container) {
  const auto stats = e.cri().container_stats(container.id);
  REQUIRE(stats);
  return stats->cpu().usage_core_nano_seconds().value();
}

void append_number(std::string& out, std::uint32_t value) {
  do {
    const auto low = static_cast<std::uint8_t>(value & 0x7f);
    value >>= 7;
    out.push_back(static_cast<char>(value != 0 ? low | 0x80 : low));
  } while (value != 0);
}

void append_section(std::string& module, char id, const std::string& content) {
  module.push_back(id);
  append_number(module, static_cast<std::uint32_t>(content.size()));
  module += content;
}

// A module whose _start returns at once and that has `size` bytes of other functions, each
// "local.get 0; i32.const 1; i32.add; local.set 0" over and over (WebAssembly core specification
// 1.0, 5.5): all of it is to be parsed and validated.
std::string big_module(std::size_t size) {
  constexpr int kSteps = 1000;
  std::string body("\x01\x01\x7f", 3);  // one local, an i32
  for (int i = 0; i < kSteps; ++i) body += std::string("\x20\x00\x41\x01\x6a\x21\x00", 7);
  body += '\x0b';
  const auto functions = static_cast<std::uint32_t>(size / body.size() + 1);

  std::string types("\x01\x60\x00\x00", 4);
  std::string declared;
  append_number(declared, functions + 1);
  declared.append(functions + 1, '\0');
  std::string memories("\x01\x00\x01", 3);
  std::string exports("\x02\x06_start\x00\x00\x06memory\x02\x00", 19);
  std::string code;
  append_number(code, functions + 1);
  code += std::string("\x02\x00\x0b", 3);
  for (std::uint32_t i = 0; i < functions; ++i) {
    append_number(code, static_cast<std::uint32_t>(body.size()));
    code += body;
  }

  std::string module("\0asm\x01\0\0\0", 8);
  append_section(module, 1, types);
  append_section(module, 3, declared);
  append_section(module, 5, memories);
  append_section(module, 7, exports);
  append_section(module, 10, code);
  return module;
}

}  // namespace

TEST_CASE("wasm: a paused module uses no CPU time, refuses execs, and goes on", "[e2e][wasm]") {
  run_engine_case([](Case& e) {
    const Pod pod = e.run_pod();
    const Container spin = e.start(pod, wasm_config(e, {"/tool.wasm", "spin"}));
    REQUIRE(ask<task_api::PauseRequest>(e, "Pause", spin).code == kOk);
    const std::uint64_t paused_at = cpu_time(e, spin);
    const auto refused = e.cri().exec_sync(spin.id, {"/tool.wasm", "print", "x"}, 5);
    REQUIRE_FALSE(refused);
    CHECK_THAT(refused.error().message, ContainsSubstring("is paused"));

    e.lab().kill_sandboxer();
    e.lab().start_sandboxer();
    CHECK(cpu_time(e, spin) == paused_at);
    REQUIRE(ask<task_api::ResumeRequest>(e, "Resume", spin).code == kOk);
    CHECK(wait_until([&] { return cpu_time(e, spin) > paused_at; }, std::chrono::seconds(10)));

    REQUIRE(ask<task_api::PauseRequest>(e, "Pause", spin).code == kOk);
    REQUIRE(e.cri().stop_container(spin.id, 0));
    CHECK(e.finish(spin).status.exit_code() == 137);
  });
}

TEST_CASE("wasm: while a module of 16 MiB is loaded others start", "[e2e][wasm]") {
  run_engine_case([](Case& e) {
    const fs::path dir = e.scratch() / "modules";
    fs::create_directory(dir);
    write_text(dir / "big.wasm", big_module(16 << 20));
    const Pod pod = e.run_pod();
    cri::ContainerConfig config = wasm_config(e, {"/modules/big.wasm"});
    cri::Mount* mount = config.add_mounts();
    mount->set_host_path(dir);
    mount->set_container_path("/modules");
    mount->set_readonly(true);
    const Container big = e.create(pod, config);

    auto started = std::async(std::launch::async, [&] { return e.cri().start_container(big.id); });
    int others = 0;
    while (started.wait_for(std::chrono::seconds(0)) != std::future_status::ready) {
      const Finished end = e.run(pod, wasm_config(e, {"/tool.wasm", "print", "small"}));
      CHECK(end.log.out == "small\n");
      ++others;
    }
    INFO(others << " others have come and gone meanwhile");
    const auto done = started.get();
    INFO((done ? "" : done.error().message));
    CHECK(done);
    // The last of them may have been the one that the big one did not wait for.
    CHECK(others > 1);
    CHECK(e.finish(big).status.exit_code() == 0);
  });
}

}  // namespace kuasar::test
