#include <fmt/format.h>
#include <signal.h>
#include <sys/stat.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <chrono>
#include <filesystem>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "e2e/table.h"
#include "support/stream_client.h"
#include "support/wait.h"
#include "support/wasm_engine.h"

// Containers that are WebAssembly modules, through CRI.

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::Matches;
using Clock = std::chrono::steady_clock;
constexpr std::int64_t kMiB = 1 << 20;
// Wasmtime tells WASI programs of EROFS as of EIO.
const std::string kReadonly = "(Read-only file system|I/O error)\n";

Finished run_tool(Case& e, const Pod& pod, std::vector<std::string> words) {
  words.insert(words.begin(), "/tool.wasm");
  return e.run(pod, wasm_config(e, words));
}

Container wasm_sleeper(Case& e, const Pod& pod) {
  const Container container =
      e.start(pod, wasm_config(e, {"/tool.wasm", "print", "up", "sleep", "3600"}));
  e.await_output(container, "up\n");
  return container;
}

std::string start_error(Case& e, const Pod& pod, const cri::ContainerConfig& config) {
  // CRI's CreateContainer makes no task yet.
  const Container container = e.create(pod, config);
  const auto started = e.cri().start_container(container.id);
  REQUIRE(!started);
  return started.error().message;
}

void add_volume(cri::ContainerConfig& config, const fs::path& host, const std::string& container,
                bool readonly) {
  cri::Mount* mount = config.add_mounts();
  mount->set_host_path(host);
  mount->set_container_path(container);
  mount->set_readonly(readonly);
}

cri::ExecSyncResponse exec(Case& e, const Container& container,
                           const std::vector<std::string>& command) {
  const auto answer = e.cri().exec_sync(container.id, command, 20);
  INFO("ExecSync: " << (answer ? "" : answer.error().message));
  REQUIRE(answer.has_value());
  return *answer;
}

// Its children have the command lines of their modules. A machine may have zygotes of others.
pid_t zygote_pid(pid_t keeper) {
  std::set<pid_t> pids = processes_with("kuasar-wasm-worker");
  std::erase_if(pids, [&](pid_t pid) {
    const std::string status = read_text(fmt::format("/proc/{}/status", pid));
    return status.find(fmt::format("\nPPid:\t{}\n", keeper)) == status.npos;
  });
  REQUIRE(pids.size() <= 1);
  return pids.empty() ? 0 : *pids.begin();
}

}  // namespace

TEST_CASE("wasm: a pod and its container go through every state", "[e2e][wasm]") {
  run_engine_case([](Case& e) {
    const Pod pod = e.run_pod();
    CHECK(e.state(pod) == cri::SANDBOX_READY);
    const Container container =
        e.create(pod, wasm_config(e, {"/tool.wasm", "print", "out", "complain", "err"}));
    CHECK(e.status(container).state() == cri::CONTAINER_CREATED);
    REQUIRE(e.cri().start_container(container.id).has_value());
    const Finished end = e.finish(container);
    CHECK(end.status.exit_code() == 0);
    CHECK(end.status.reason() == "Completed");
    CHECK(end.log.out == "out\n");
    CHECK(end.log.err == "err\n");
    e.stop(pod);
    CHECK(e.state(pod) == cri::SANDBOX_NOTREADY);
    e.remove(pod);
  });
}

TEST_CASE("wasm: the image's command, arguments, environment, working directory, functions",
          "[e2e][wasm]") {
  run_engine_case([](Case& e) {
    const Pod pod = e.run_pod();
    CHECK(e.run(pod, wasm_config(e, {})).log.out == "hello from wasm\n");
    cri::ContainerConfig config =
        wasm_config(e, {"/tool.wasm", "print", "two words", "getenv", "IMAGE", "getenv", "MINE",
                        "chdir", "$PWD", "cat", "README"});
    cri::KeyValue* variable = config.add_envs();
    variable->set_key("MINE");
    variable->set_value("a=b");
    CHECK(e.run(pod, config).log.out == "two words\nwasm\na=b\nwritten into the image\n");
    CHECK(e.run(pod, wasm_config(e, {"/tool.wasm#answer"})).log.out == "the answer is 42\n");
    cri::ContainerConfig relative = wasm_config(e, {"../hello.wasm"});
    CHECK(e.run(pod, relative).log.out == "hello from wasm\n");
  });
}

TEST_CASE("wasm: exit codes, traps with their words, signals", "[e2e][wasm]") {
  run_engine_case([](Case& e) {
    const Pod pod = e.run_pod();
    CHECK(run_tool(e, pod, {"exit", "7"}).status.exit_code() == 7);
    const Finished trap = run_tool(e, pod, {"print", "before", "trap"});
    CHECK(trap.status.exit_code() == 134);
    CHECK(trap.status.reason() == "Error");
    CHECK(trap.log.out == "before\n");
    CHECK_THAT(trap.log.err, Matches("wasm trap: (wasm `)?unreachable.*\n"));
    // It computes without a pause, and SIGTERM ends it at once.
    const Container spin = e.start(pod, wasm_config(e, {"/tool.wasm", "print", "up", "spin"}));
    e.await_output(spin, "up\n");
    const auto begin = Clock::now();
    REQUIRE(e.cri().stop_container(spin.id, 30).has_value());
    CHECK(Clock::now() - begin < std::chrono::seconds(10));
    CHECK(e.finish(spin).status.exit_code() == 143);
    const Container killed = wasm_sleeper(e, pod);
    REQUIRE(e.cri().stop_container(killed.id, 0).has_value());
    CHECK(e.finish(killed).status.exit_code() == 137);
    // An endless start function is a running container like any other.
    const Container endless = e.start(pod, wasm_config(e, {"/endless.wasm"}));
    CHECK(e.status(endless).state() == cri::CONTAINER_RUNNING);
  });
}

TEST_CASE("wasm: volumes, the read-only root, and what a guest cannot see", "[e2e][wasm]") {
  run_engine_case([](Case& e) {
    const fs::path data = e.scratch() / "data";
    fs::create_directory(data);
    fs::permissions(data, fs::perms::all);
    write_text(data / "in", "from the host\n");
    const Pod pod = e.run_pod();
    cri::ContainerConfig config =
        wasm_config(e, {"/tool.wasm", "cat", "/rw/in", "put", "/rw/out", "from the guest", "cat",
                        "/ro/in", "put", "/ro/refused", "x"});
    add_volume(config, data, "/rw", false);
    add_volume(config, data, "/ro", true);
    const Finished end = e.run(pod, config);
    CHECK(end.log.out == "from the host\nfrom the host\n");
    CHECK_THAT(end.log.err, Matches("put /ro/refused: " + kReadonly));
    CHECK(end.status.exit_code() == 1);
    CHECK(read_text(data / "out") == "from the guest");

    CHECK(run_tool(e, pod, {"put", "/new", "x", "cat", "/new"}).log.out == "x");
    cri::ContainerConfig readonly = wasm_config(e, {"/tool.wasm", "put", "/new", "x"});
    readonly.mutable_linux()->mutable_security_context()->set_readonly_rootfs(true);
    CHECK_THAT(e.run(pod, readonly).log.err, Matches("put /new: " + kReadonly));

    // A way out of the image leads nowhere, and there is no /proc and no /sys.
    for (const char* outside :
         {"/outside/hostname", "/../../etc/hostname", "/tmp/../../etc/hostname"}) {
      const Finished refused = run_tool(e, pod, {"cat", outside});
      CHECK(refused.status.exit_code() == 1);
      CHECK(refused.log.out == "");
    }
    const std::string root = run_tool(e, pod, {"list", "/"}).log.out;
    CHECK_THAT(root, !ContainsSubstring("proc") && !ContainsSubstring("sys\n"));
    CHECK_THAT(run_tool(e, pod, {"cat", "/etc/hostname"}).log.out,
               ContainsSubstring(pod.config.hostname()));
  });
}

TEST_CASE("wasm: users and groups of the image own what is written", "[e2e][wasm]") {
  run_engine_case([](Case& e) {
    const fs::path data = e.scratch() / "data";
    fs::create_directory(data);
    fs::permissions(data, fs::perms::all);
    cri::ContainerConfig config = wasm_config(e, {"/tool.wasm", "put", "/data/mine", "x"});
    config.mutable_linux()->mutable_security_context()->set_run_as_username("app");
    add_volume(config, data, "/data", false);
    CHECK(e.run(e.run_pod(), config).status.exit_code() == 0);
    struct stat st {};
    REQUIRE(::stat((data / "mine").c_str(), &st) == 0);
    CHECK(st.st_uid == 1000);
    CHECK(st.st_gid == 1000);
  });
}

TEST_CASE("wasm: what is no module, or a bad one, is refused with a reason", "[e2e][wasm]") {
  run_engine_case([](Case& e) {
    const Pod pod = e.run_pod();
    const Container neighbour = wasm_sleeper(e, pod);
    const auto error = [&](const std::string& module) {
      return start_error(e, pod, wasm_config(e, {module}));
    };
    CHECK_THAT(error("/elf.wasm"), ContainsSubstring("\"/elf.wasm\" is no WebAssembly module: it "
                                                     "does not begin with \\0asm"));
    CHECK_THAT(error("/component.wasm"), ContainsSubstring("not supported"));
    CHECK_THAT(error("/none.wasm"), ContainsSubstring("No such file or directory"));
    CHECK_THAT(error("/sockets.wasm"), ContainsSubstring("WASI sockets are not supported"));
    for (const char* bad : {"/truncated.wasm", "/imports.wasm", "/locals.wasm"}) {
      INFO(bad);
      CHECK_THAT(error(bad), ContainsSubstring("is refused: "));
    }
    // 4 GiB of memory within a limit: told at the start, or as long as nobody touches them.
    cri::ContainerConfig memory = wasm_config(e, {"/memory.wasm"});
    memory.mutable_linux()->mutable_resources()->set_memory_limit_in_bytes(64 * kMiB);
    const int code = e.run(pod, memory).status.exit_code();
    CHECK((code == 0 || code == 134));
    // An image without modules: a program that a native pod would run.
    CHECK_THAT(start_error(e, pod, e.container_config({"/bin/sh"})),
               ContainsSubstring("is no WebAssembly module"));
    CHECK(e.status(neighbour).state() == cri::CONTAINER_RUNNING);
    CHECK(run_tool(e, pod, {"print", "well"}).log.out == "well\n");
  });
}

TEST_CASE("wasm: standard input, and a terminal", "[e2e][wasm]") {
  run_engine_case([](Case& e) {
    const Pod pod = e.run_pod();
    for (const bool tty : {false, true}) {
      cri::ContainerConfig config = wasm_config(e, {"/tool.wasm", "tty", "stdin", "print", "end"});
      config.set_stdin(true);
      config.set_stdin_once(true);
      config.set_tty(tty);
      const Container container = e.start(pod, config);
      cri::AttachRequest request;
      request.set_container_id(container.id);
      request.set_tty(tty);
      request.set_stdin(true);
      request.set_stdout(true);
      request.set_stderr(!tty);
      const auto url = e.cri().attach(request);
      REQUIRE(url.has_value());
      {
        StreamClient client(*url);
        client.type("typed\n");
        CHECK(client.await("typed"));
        // Ctrl-D at the beginning of a line.
        if (tty) client.type("\x04");
        if (tty) CHECK(client.await("end"));
      }
      const Finished end = e.finish(container);
      CHECK(end.status.exit_code() == 0);
      CHECK_THAT(end.log.out, ContainsSubstring(tty ? "tty" : "no tty"));
      CHECK_THAT(end.log.out, ContainsSubstring("end"));
    }
  });
}

TEST_CASE("T3: wasm: a guest that takes all memory is OOMKilled, or told by its own limit",
          "[e2e][wasm]") {
  run_engine_case([](Case& e) {
    const Pod pod = e.run_pod();
    cri::ContainerConfig config = wasm_config(e, {"/tool.wasm", "hog"});
    cri::LinuxContainerResources& limits = *config.mutable_linux()->mutable_resources();
    limits.set_memory_limit_in_bytes(32 * kMiB);
    limits.set_memory_swap_limit_in_bytes(32 * kMiB);
    const Finished end = e.run(pod, config);
    CHECK(end.status.exit_code() == 137);
    CHECK(end.status.reason() == "OOMKilled");
  });
}

TEST_CASE("T4: wasm: stats count the module's CPU time and memory; limits are updated",
          "[e2e][wasm]") {
  run_engine_case([](Case& e) {
    const Pod pod = e.run_pod();
    const Container spin = e.start(pod, wasm_config(e, {"/tool.wasm", "spin"}));
    CHECK(processes_with("/tool.wasm spin").size() == 1);
    CHECK(wait_until(
        [&] {
          const auto stats = e.cri().container_stats(spin.id);
          return stats && stats->cpu().usage_core_nano_seconds().value() > 100000000 &&
                 stats->memory().working_set_bytes().value() > 0;
        },
        std::chrono::seconds(20)));
    cri::LinuxContainerResources more;
    more.set_memory_limit_in_bytes(256 * kMiB);
    more.set_memory_swap_limit_in_bytes(256 * kMiB);
    CHECK(e.cri().update_resources(spin.id, more).has_value());
  });
}

TEST_CASE("wasm: exec runs another module beside the first, in its namespaces", "[e2e][wasm]") {
  run_engine_case([](Case& e) {
    const Pod pod = e.run_pod();
    const Container container = e.start(
        pod, wasm_config(
                 e, {"/tool.wasm", "put", "/tmp/note", "hello", "print", "up", "sleep", "3600"}));
    e.await_output(container, "up\n");
    const auto answer =
        exec(e, container, {"/tool.wasm", "cat", "/tmp/note", "complain", "err", "exit", "7"});
    CHECK(answer.exit_code() == 7);
    CHECK(answer.stdout() == "hello");
    CHECK(answer.stderr() == "err\n");
    CHECK(exec(e, container, {"/hello.wasm"}).stdout() == "hello from wasm\n");
    CHECK(exec(e, container, {"/tool.wasm", "trap"}).exit_code() == 134);
    CHECK(exec(e, container, {"/tool.wasm", "stdin", "print", "end"}).stdout() == "end\n");
    const auto missing = e.cri().exec_sync(container.id, {"/none.wasm"}, 20);
    REQUIRE(!missing);
    CHECK_THAT(missing.error().message, ContainsSubstring("No such file or directory"));
    const auto elf = e.cri().exec_sync(container.id, {"/elf.wasm"}, 20);
    REQUIRE(!elf);
    CHECK_THAT(elf.error().message, ContainsSubstring("is no WebAssembly module"));
    CHECK(e.status(container).state() == cri::CONTAINER_RUNNING);
  });
}

TEST_CASE("wasm: namespaces of the pod: a shared PID namespace, the host's network",
          "[e2e][wasm]") {
  run_engine_case([](Case& e) {
    cri::PodSandboxConfig config = e.pod_config();
    namespace_options(config)->set_pid(cri::POD);
    const Pod shared = e.run_pod(config);
    cri::ContainerConfig hello = wasm_config(e, {"/hello.wasm"});
    namespace_options(hello)->set_pid(cri::POD);
    CHECK(e.run(shared, hello).log.out == "hello from wasm\n");
    cri::ContainerConfig sleeper = wasm_config(e, {"/tool.wasm", "print", "up", "sleep", "3600"});
    namespace_options(sleeper)->set_pid(cri::POD);
    const Container container = e.start(shared, sleeper);
    e.await_output(container, "up\n");
    CHECK(exec(e, container, {"/hello.wasm"}).exit_code() == 0);
    REQUIRE(e.cri().stop_container(container.id, 10).has_value());
    CHECK(e.finish(container).status.exit_code() == 143);

    const Pod host = e.run_pod(e.host_network_config());
    CHECK(run_tool(e, host, {"print", "on the host"}).log.out == "on the host\n");
  });
}

TEST_CASE("wasm: two containers of one zygote never share random numbers", "[e2e][wasm]") {
  run_engine_case([](Case& e) {
    const Pod pod = e.run_pod();
    std::set<std::string> seen;
    for (int i = 0; i < 4; ++i) {
      for (const std::string& line : lines_of(run_tool(e, pod, {"random", "random"}).log.out)) {
        if (!line.empty()) seen.insert(line);
      }
    }
    CHECK(seen.size() == 8);
  });
}

TEST_CASE("T9: wasm: kill -9 of the daemon, the keeper and the zygote: containers run on",
          "[e2e][wasm]") {
  run_engine_case([](Case& e) {
    const Pod pod = e.run_pod();
    const Container counter =
        e.start(pod, wasm_config(e, {"/tool.wasm", "count", "600", "exit", "9"}));
    e.await_output(counter, "3\n");
    const Container created = e.create(pod, wasm_config(e, {"/tool.wasm", "exit", "5"}));
    const pid_t zygote = zygote_pid(e.lab().keeper_pid());
    REQUIRE(zygote > 0);
    // A daemon finds a zygote by that when the keeper died while it was started: no container has
    // it.
    const std::string key = "KUASAR_SPAWN_KEY=zygote/";
    CHECK_THAT(read_text(fmt::format("/proc/{}/environ", zygote)), ContainsSubstring(key));
    for (const pid_t pid : processes_with("/tool.wasm count")) {
      CHECK_THAT(read_text(fmt::format("/proc/{}/environ", pid)), !ContainsSubstring(key));
    }
    e.lab().kill_sandboxer();
    e.lab().start_sandboxer();
    CHECK(run_tool(e, pod, {"print", "after the daemon"}).log.out == "after the daemon\n");
    CHECK(zygote_pid(e.lab().keeper_pid()) != zygote);
    // Made under the daemon before, started by this one.
    REQUIRE(e.cri().start_container(created.id).has_value());
    CHECK(e.finish(created).status.exit_code() == 5);

    e.lab().kill_keeper();
    CHECK(run_tool(e, pod, {"print", "after the keeper"}).log.out == "after the keeper\n");
    const pid_t second = zygote_pid(e.lab().keeper_pid());
    REQUIRE(second > 0);
    REQUIRE(::kill(second, SIGKILL) == 0);
    CHECK(run_tool(e, pod, {"print", "after the zygote"}).log.out == "after the zygote\n");
    CHECK(e.status(counter).state() == cri::CONTAINER_RUNNING);
    CHECK(exec(e, counter, {"/hello.wasm"}).stdout() == "hello from wasm\n");

    const Finished end = e.finish(counter);
    CHECK(end.status.exit_code() == 9);
    std::string expected;
    for (int i = 0; i < 600; ++i) expected += fmt::format("{}\n", i);
    CHECK(end.log.out == expected);
  });
}

TEST_CASE("wasm: the daemon dies after a container was let go, before it is noted",
          "[e2e][wasm][matrix]") {
  run_wasm_case([](Case& e) {
    if (!e.lab().has_failpoints()) SKIP("the sandboxer was built without failpoints");
    const Pod pod = e.run_pod();
    const std::vector<std::pair<std::vector<std::string>, int>> ways = {
        {{"/tool.wasm", "exit", "7"}, 7},
        {{"/tool.wasm", "count", "500", "exit", "9"}, 9},
    };
    for (const auto& [words, code] : ways) {
      const Container container = e.create(pod, wasm_config(e, words));
      std::optional<std::string> refused;
      e.lab().arm("container.started", "kill");
      std::thread start([&] {
        const auto started = e.cri().start_container(container.id);
        if (!started) refused = started.error().message;
      });
      const bool died = wait_until([&] { return !e.lab().healthy(); }, std::chrono::seconds(20));
      const bool left = e.lab().disarm("container.started");
      if (died) e.lab().start_sandboxer();
      start.join();
      REQUIRE(died);
      REQUIRE_FALSE(left);
      INFO(refused.value_or(""));
      CHECK_FALSE(refused);
      CHECK(e.finish(container).status.exit_code() == code);
    }
  });
}

TEST_CASE("wasm: a runtime handler names its engine", "[e2e][wasm]") {
  run_wasm_case([](Case& e) {
    const cri::PodSandboxConfig config = e.pod_config();
    const auto id = e.cri().run_pod(config, e.lab().named_handler());
    REQUIRE(id);
    const Pod pod{*id, config};
    CHECK(e.run(pod, wasm_config(e, {"/hello.wasm"})).log.out == "hello from wasm\n");
  });
}

TEST_CASE("wasm: a pod's annotation names its engine, also to the next daemon", "[e2e][wasm]") {
  std::string reason;
  const auto wasmedge = find_wasmedge(reason);
  const auto wasmtime = find_wasmtime(reason);
  if (!wasmedge || !wasmtime) SKIP(reason);
  const std::string both =
      engine_toml(*wasmedge) + fmt::format("wasmtime_library = \"{}\"\n", wasmtime->library);
  run_wasm_case_with(both, [](Case& e) {
    const auto pod_with = [&](const char* engine) {
      cri::PodSandboxConfig config = e.pod_config();
      if (engine != nullptr) (*config.mutable_annotations())["io.kuasar.wasm.engine"] = engine;
      return e.run_pod(config);
    };
    const auto trap_in = [&](const Pod& pod) { return run_tool(e, pod, {"trap"}).log.err; };
    const Pod compiled = pod_with("wasmtime");
    const Container stays = wasm_sleeper(e, compiled);
    CHECK(trap_in(compiled) == "wasm trap: wasm `unreachable` instruction executed\n");
    CHECK(trap_in(pod_with("wasmedge")) == "wasm trap: unreachable\n");
    CHECK(trap_in(pod_with(nullptr)) == "wasm trap: unreachable\n");
    CHECK_THAT(start_error(e, pod_with("v8"), wasm_config(e, {"/hello.wasm"})),
               ContainsSubstring("io.kuasar.wasm.engine: there is no WebAssembly engine \"v8\"; "
                                 "there is wasmedge, wasmtime"));

    e.lab().kill_sandboxer();
    e.lab().start_sandboxer();
    CHECK_THAT(exec(e, stays, {"/tool.wasm", "trap"}).stderr(), ContainsSubstring("wasm `unreach"));
    CHECK(trap_in(pod_with("wasmedge")) == "wasm trap: unreachable\n");
  });
}

TEST_CASE("wasm: an exec with a terminal and input", "[e2e][wasm]") {
  run_wasm_case([](Case& e) {
    const Pod pod = e.run_pod();
    const Container container = wasm_sleeper(e, pod);
    cri::ExecRequest request;
    request.set_container_id(container.id);
    for (const char* word : {"/tool.wasm", "tty", "stdin", "exit", "4"}) request.add_cmd(word);
    request.set_tty(true);
    request.set_stdin(true);
    request.set_stdout(true);
    const auto url = e.cri().exec(request);
    REQUIRE(url);
    StreamClient client(*url);
    CHECK(client.await("tty"));
    client.type("typed\n\x04");
    CHECK(client.await("typed"));
    CHECK(client.await_end());
    CHECK(client.exit_code() == 4);
    CHECK(e.status(container).state() == cri::CONTAINER_RUNNING);
  });
}

TEST_CASE("wasm: SIGTERM with no pod left ends the daemon, its keeper and its zygote",
          "[e2e][wasm]") {
  run_wasm_case([](Case& e) {
    CHECK(run_tool(e, e.run_pod(), {"print", "x"}).log.out == "x\n");
    e.clean_up();
    const pid_t zygote = zygote_pid(e.lab().keeper_pid());
    REQUIRE(zygote > 0);
    CHECK(e.lab().stop_sandboxer() == 0);
    CHECK(e.lab().keeper_pid() == 0);
    CHECK(wait_until([&] { return !fs::exists(fmt::format("/proc/{}", zygote)); },
                     std::chrono::seconds(10)));
    e.lab().start_sandboxer();
  });
}

TEST_CASE("wasm: beside the runc kind on one containerd", "[e2e][wasm]") {
  std::string reason = Lab::unavailable();
  if (!reason.empty()) SKIP(reason);
  const auto engine = find_wasmedge(reason);
  if (!engine) SKIP(reason);
  Lab lab(sandboxers_under_test().front(), "", Neighbour{wasm_sandboxer(), engine_toml(*engine)});
  Case e(lab);
  const Pod native = e.run_pod();
  cri::PodSandboxConfig config = e.pod_config();
  const auto id = lab.cri().run_pod(config, wasm_sandboxer().handler);
  REQUIRE(id);
  const Pod modules{*id, config};
  CHECK(e.output_of(native, "echo native") == "native");
  CHECK(e.run(modules, wasm_config(e, {"/hello.wasm"})).log.out == "hello from wasm\n");
  // Each handler runs its own kind only.
  CHECK_THAT(start_error(e, modules, e.container_config({"/bin/sh"})),
             ContainsSubstring("is no WebAssembly module"));
  e.clean_up();
}

TEST_CASE("wasm: a missing engine is an error of its pods, and the daemon serves on",
          "[e2e][wasm]") {
  const std::string config = "wasmedge_library = \"libno-such-engine.so\"\naot_cache = \"none\"\n";
  run_wasm_case_with(config, [](Case& e) {
    const Pod pod = e.run_pod();
    CHECK_THAT(start_error(e, pod, wasm_config(e, {"/hello.wasm"})),
               ContainsSubstring("wasm engine wasmedge: libno-such-engine.so: cannot open shared "
                                 "object file"));
    CHECK(e.state(pod) == cri::SANDBOX_READY);
    e.stop(pod);
    e.remove(pod);
  });
}

}  // namespace kuasar::test
