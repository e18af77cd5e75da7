#include <fmt/format.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <chrono>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "e2e/many_pods.h"
#include "e2e/table.h"
#include "support/wait.h"

// Exec through CRI's ExecSync, and standard output as the workload sees it.

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;
using Catch::Matchers::ContainsSubstring;
using Clock = std::chrono::steady_clock;

cri::ExecSyncResponse exec(Case& e, const Container& container,
                           const std::vector<std::string>& command, int timeout = 0) {
  const auto answer = e.cri().exec_sync(container.id, command, timeout);
  INFO("ExecSync: " << (answer ? "" : answer.error().message));
  REQUIRE(answer.has_value());
  return *answer;
}

cri::ExecSyncResponse shell_in(Case& e, const Container& container, const std::string& script) {
  return exec(e, container, {"sh", "-c", script});
}

// Nothing of an exec stays in the container's directory.
void check_no_files(Case& e, const Pod& pod, const Container& container) {
  if (!e.ours()) return;
  const fs::path dir = e.lab().dir() / "sandboxes" / pod.id / "containers" / container.id;
  for (const auto& entry : fs::directory_iterator(dir)) {
    CHECK_FALSE(entry.path().filename().string().starts_with("exec-"));
  }
}

}  // namespace

TEST_CASE("exec: exit codes, and output by stream", "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    const Container container = e.sleeper(pod);
    const auto answer = shell_in(e, container, "echo out; echo err >&2; echo end; exit 7");
    CHECK(answer.exit_code() == 7);
    CHECK(answer.stdout() == "out\nend\n");
    CHECK(answer.stderr() == "err\n");
    CHECK(shell_in(e, container, "true").exit_code() == 0);
    CHECK(shell_in(e, container, "kill -15 $$; sleep 5").exit_code() == 143);
    CHECK(shell_in(e, container, "kill -9 $$; sleep 5").exit_code() == 137);
    // Its standard input is empty.
    CHECK(shell_in(e, container, "cat; echo $?").stdout() == "0\n");
    check_no_files(e, pod, container);
  });
}

TEST_CASE("exec: it sees the container: files, pids, namespaces", "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    const Container container = e.sleeper(pod);
    CHECK(shell_in(e, container, "echo mine >/note; readlink /proc/self/ns/pid").stdout() ==
          shell_in(e, container, "readlink /proc/1/ns/pid").stdout());
    CHECK(shell_in(e, container, "cat /note").stdout() == "mine\n");
    CHECK(shell_in(e, container, "tr '\\0' ' ' </proc/1/cmdline").stdout() == "sleep 3600 ");
  });
}

TEST_CASE("exec: 8 MiB of output are complete", "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    const Container container = e.sleeper(pod);
    const auto answer = shell_in(
        e, container, "dd if=/dev/zero bs=4096 count=2048 2>/dev/null | tr '\\0' x; echo end >&2");
    CHECK(answer.exit_code() == 0);
    CHECK(answer.stdout() == std::string(8 << 20, 'x'));
    CHECK(answer.stderr() == "end\n");
    // Many small writes: each takes one of a pipe's 16 slots.
    const auto lines =
        shell_in(e, container, "i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done");
    std::string wanted;
    for (int i = 0; i < 20000; ++i) wanted += fmt::format("{}\n", i);
    CHECK(lines.stdout() == wanted);
  });
}

TEST_CASE("exec: a missing program is named, and leaves nothing", "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    const Container container = e.sleeper(pod);
    const auto answer = e.cri().exec_sync(container.id, {"/no/such/program"}, 0);
    REQUIRE_FALSE(answer.has_value());
    CHECK_THAT(answer.error().message, ContainsSubstring("OCI runtime exec failed: "));
    CHECK_THAT(answer.error().message, ContainsSubstring("/no/such/program"));
    CHECK_THAT(answer.error().message,
               ContainsSubstring("no such file or directory", Catch::CaseSensitive::No));
    check_no_files(e, pod, container);
  });
}

TEST_CASE("exec: a timeout kills the process", "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    const Container container = e.sleeper(pod);
    const auto began = Clock::now();
    const auto answer = e.cri().exec_sync(container.id, {"sleep", "3611"}, 1);
    REQUIRE_FALSE(answer.has_value());
    CHECK(answer.error().code == Code::kDeadlineExceeded);
    CHECK(Clock::now() - began < std::chrono::seconds(8));
    CHECK(wait_until([] { return processes_with("sleep 3611").empty(); }, std::chrono::seconds(5)));
    CHECK(e.status(container).state() == cri::CONTAINER_RUNNING);
  });
}

TEST_CASE("T23 P3: containerd's drain_exec_sync_io_timeout is for a child that holds the output",
          "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    const Container container = e.sleeper(pod);
    const auto began = Clock::now();
    const auto answer =
        e.cri().exec_sync(container.id, {"sh", "-c", "echo out; sleep 3612 & exit 3"}, 0);
    const auto took = Clock::now() - began;
    REQUIRE_FALSE(answer);
    CHECK_THAT(answer.error().message, ContainsSubstring("failed to drain exec process"));
    // The lab's is 11 s: longer than any time of ours.
    CHECK(took > std::chrono::seconds(10));
    CHECK(took < std::chrono::seconds(16));
    // The child is the container's affair.
    CHECK(processes_with("sleep 3612").size() == 1);
    CHECK(shell_in(e, container, "echo next").stdout() == "next\n");
  });
}

TEST_CASE("exec: 20 at once in one container", "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    const Container container = e.sleeper(pod);
    std::vector<std::string> out(20);
    std::vector<int> codes(20, -1);
    std::vector<std::jthread> threads;
    for (int i = 0; i < 20; ++i) {
      threads.emplace_back([&, i] {
        const auto answer = e.cri().exec_sync(
            container.id, {"sh", "-c", fmt::format("echo number {}; exit {}", i, i)}, 0);
        if (!answer) {
          out[i] = answer.error().message;
          return;
        }
        out[i] = answer->stdout();
        codes[i] = answer->exit_code();
      });
    }
    for (std::jthread& thread : threads) thread.join();
    for (int i = 0; i < 20; ++i) {
      CHECK(out[i] == fmt::format("number {}\n", i));
      CHECK(codes[i] == i);
    }
    check_no_files(e, pod, container);
  });
}

TEST_CASE("exec: a stopped or a created container runs none", "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    const Container created = e.create(pod, e.container_config({"true"}));
    CHECK_FALSE(e.cri().exec_sync(created.id, {"true"}, 0).has_value());
    const Container ended = e.shell(pod, "exit 0");
    e.finish(ended);
    CHECK_FALSE(e.cri().exec_sync(ended.id, {"true"}, 0).has_value());
  });
}

TEST_CASE("exec: the end of the container ends what runs in it", "[e2e][table]") {
  for (const bool shared : {false, true}) {
    DYNAMIC_SECTION((shared ? "pid POD" : "pid CONTAINER")) {
      run_case([shared](Case& e) {
        cri::PodSandboxConfig config = e.pod_config();
        if (shared) namespace_options(config)->set_pid(cri::POD);
        const Pod pod = e.run_pod(config);
        cri::ContainerConfig container_config =
            e.container_config({"sh", "-c", "echo up; exec sleep 3613"});
        if (shared) namespace_options(container_config)->set_pid(cri::POD);
        const Container container = e.start(pod, container_config);
        e.await_output(container, "up\n");
        int code = -1;
        std::jthread runs([&] {
          const auto answer = e.cri().exec_sync(container.id, {"sleep", "3614"}, 0);
          if (answer) code = answer->exit_code();
        });
        const bool seen = wait_until([] { return processes_with("sleep 3614").size() == 1; },
                                     std::chrono::seconds(10));
        CHECK(e.cri().stop_container(container.id, 0).has_value());
        runs.join();
        REQUIRE(seen);
        CHECK(code == 137);
        CHECK(e.finish(container).status.exit_code() == 137);
        CHECK(processes_with("sleep 3614").empty());
      });
    }
  }
}

TEST_CASE("stdio: /dev/stdout can be opened by user 1000, in a container and in an exec",
          "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    const std::string script = "id -u; echo opened > /dev/stdout; echo error > /dev/stderr";
    cri::ContainerConfig config =
        e.container_config({"sh", "-c", script + "; echo up; exec sleep 3615"});
    config.mutable_linux()->mutable_security_context()->mutable_run_as_user()->set_value(1000);
    const Container container = e.start(pod, config);
    e.await_output(container, "up\n");
    CHECK(e.log(container).out == "1000\nopened\nup\n");
    CHECK(e.log(container).err == "error\n");
    const auto answer = shell_in(e, container, script);
    CHECK(answer.stdout() == "1000\nopened\n");
    CHECK(answer.stderr() == "error\n");
  });
}

TEST_CASE("stdio: a workload that makes its output non-blocking loses and breaks nothing",
          "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    cri::ContainerConfig config = e.container_config({"/tool", "1048576"});
    cri::Mount* tool = config.add_mounts();
    tool->set_container_path("/tool");
    tool->set_host_path(fs::read_symlink("/proc/self/exe").parent_path() / "nonblocking_writer");
    tool->set_readonly(true);
    const Finished end = e.run(pod, config);
    CHECK(end.status.exit_code() == 0);
    CHECK(end.log.out == std::string(1048575, 'x') + "\n");
    // The next process of the same FIFO's kind is not affected: each has its own description.
    CHECK(e.output_of(pod, "echo after") == "after");
  });
}

TEST_CASE("D7: 280 execs of one container at a time", "[e2e][table]") {
  run_case([](Case& e) {
    constexpr int kExecs = 280;
    const std::string waits = "until [ -e /go ]; do sleep 1; done; exit ";
    const Pod pod = e.run_pod(e.host_network_config());
    const Container container = e.sleeper(pod);
    bool all_there = false;
    const std::jthread starter([&] {
      all_there = wait_until([&] { return processes_with(waits).size() >= kExecs; },
                             std::chrono::seconds(60));
      (void)e.cri().exec_sync(container.id, {"touch", "/go"}, 20);
    });
    for_many(kExecs, kExecs, [&](int i) -> Result<> {
      TRY(const cri::ExecSyncResponse answer,
          e.cri().exec_sync(container.id, {"sh", "-c", waits + std::to_string(i % 100)}, 0));
      if (answer.exit_code() == i % 100) return {};
      return fail(Code::kUnknown, "it ended with {}", answer.exit_code());
    });
    CHECK(all_there);
  });
}

}  // namespace kuasar::test
