#include <signal.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <filesystem>
#include <string>

#include "e2e/table.h"
#include "support/wait.h"

// PID namespaces: a container's own, and one that the pod's containers share.

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;

Pod shared_pod(Case& e) {
  cri::PodSandboxConfig config = e.pod_config();
  namespace_options(config)->set_pid(cri::POD);
  return e.run_pod(config);
}

cri::ContainerConfig sharing(Case& e, const std::string& script) {
  cri::ContainerConfig config = e.container_config({"sh", "-c", script});
  namespace_options(config)->set_pid(cri::POD);
  return config;
}

std::string shared_output(Case& e, const Pod& pod, const std::string& script) {
  const Finished end = e.run(pod, sharing(e, script));
  INFO("`" << script << "` said: " << end.log.out << end.log.err);
  REQUIRE(end.status.exit_code() == 0);
  return trimmed(end.log.out);
}

}  // namespace

TEST_CASE("pid CONTAINER: a container is PID 1 of its own namespace", "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    e.sleeper(pod);
    CHECK(e.output_of(pod, "echo $$; ps -o args | grep -c '[s]leep 3600'; true") == "1\n0");
  });
}

TEST_CASE("pid POD: containers see each other, and PID 1 is neither", "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = shared_pod(e);
    const Container other = e.start(pod, sharing(e, "echo up; exec sleep 3601"));
    e.await_output(other, "up\n");
    CHECK(shared_output(e, pod, "ps -o args | grep -c '[s]leep 3601'") == "1");
    CHECK(shared_output(e, pod, "[ $$ -ne 1 ] && echo not-first") == "not-first");
    // A container that asks for its own is left alone.
    CHECK(e.output_of(pod, "echo $$; ps -o args | grep -c '[s]leep 3601'; true") == "1\n0");
  });
}

TEST_CASE("pid: a client that says nothing about namespaces means POD", "[e2e][table]") {
  run_case([](Case& e) {
    cri::PodSandboxConfig pod_config = e.pod_config();
    pod_config.mutable_linux()->clear_security_context();
    const Pod pod = e.run_pod(pod_config);
    cri::ContainerConfig config =
        e.container_config({"sh", "-c", "[ $$ -ne 1 ] && echo not-first"});
    config.clear_linux();
    CHECK(e.run(pod, config).log.out == "not-first\n");
  });
}

TEST_CASE("pid POD: the shared init exposes nothing of the host", "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("an init of its own");
    const Pod pod = shared_pod(e);
    // As the container's root: what root in the pod may see, anybody may.
    const auto probe = [&](const std::string& script) { return shared_output(e, pod, script); };
    CHECK(probe("ls -A /proc/1/root/ 2>/dev/null | wc -l") == "0");
    CHECK(probe("ls -A /proc/1/cwd/ 2>/dev/null | wc -l") == "0");
    CHECK(probe("cat /proc/1/environ 2>/dev/null | wc -c") == "0");
    CHECK(probe("ls /proc/1/fd 2>/dev/null | wc -l") == "0");
    CHECK(probe("readlink /proc/1/exe || echo hidden") == "hidden");
    CHECK(probe("tr '\\0' ' ' </proc/1/cmdline").find('/') == std::string::npos);
    CHECK(probe("grep '^Uid:' /proc/1/status") == "Uid:\t65534\t65534\t65534\t65534");
    CHECK(probe("grep '^Gid:' /proc/1/status") == "Gid:\t65534\t65534\t65534\t65534");
    CHECK(probe("grep '^CapPrm:' /proc/1/status") == "CapPrm:\t0000000000000000");
    CHECK(probe("grep '^CapBnd:' /proc/1/status") == "CapBnd:\t0000000000000000");
    CHECK(probe("grep '^NoNewPrivs:' /proc/1/status") == "NoNewPrivs:\t1");
  });
}

TEST_CASE("pid POD: the shared init reaps orphans", "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("an init of its own");
    const Pod pod = shared_pod(e);
    const std::string script =
        "for i in 1 2 3 4 5; do (true & ) ; done;"
        "n=1; for try in $(seq 1 100); do"
        "  n=$(grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l);"
        "  [ $n = 0 ] && break; sleep 0.05; done; echo $n";
    CHECK(shared_output(e, pod, script) == "0");
  });
}

TEST_CASE("T17: with a shared PID namespace the init's exit ends its children", "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = shared_pod(e);
    // The child outlives its parent and holds the output open.
    const Container container =
        e.start(pod, sharing(e, "sleep 3602 & setsid sleep 3603 & echo up; exit 4"));
    const Finished end = e.finish(container);
    CHECK(end.status.exit_code() == 4);
    CHECK(end.log.out == "up\n");
    CHECK(wait_until([] { return processes_with("sleep 3602").empty(); }, std::chrono::seconds(5)));
    CHECK(wait_until([] { return processes_with("sleep 3603").empty(); }, std::chrono::seconds(5)));
    // The others of the pod live on.
    CHECK(shared_output(e, pod, "echo next") == "next");
  });
}

TEST_CASE("pid POD: the death of the shared init ends the pod", "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("an init of its own");
    const Pod pod = shared_pod(e);
    const Container container = e.start(pod, sharing(e, "echo up; exec sleep 3604"));
    e.await_output(container, "up\n");
    // Between "up" and the end of the exec its command line is empty.
    std::set<pid_t> workload;
    REQUIRE(wait_until([&] { return (workload = processes_with("sleep 3604")).size() == 1; },
                       std::chrono::seconds(5)));
    // The init is the process of the workload's PID namespace that is PID 1 in it.
    const fs::path proc = "/proc/" + std::to_string(*workload.begin());
    const fs::path pid_namespace = fs::read_symlink(proc / "ns/pid");
    pid_t init = 0;
    for (const auto& entry : fs::directory_iterator("/proc")) {
      std::error_code ec;
      if (fs::read_symlink(entry.path() / "ns/pid", ec) != pid_namespace) continue;
      const std::string status = read_text(entry.path() / "status");
      const std::size_t line = status.find("NSpid:");
      const std::string pids = status.substr(line, status.find('\n', line) - line);
      if (pids.ends_with("\t1")) init = std::stoi(entry.path().filename());
    }
    REQUIRE(init > 0);
    ::kill(init, SIGKILL);
    CHECK(e.finish(container).status.exit_code() == 137);
    CHECK(wait_until([&] { return e.state(pod) == cri::SANDBOX_NOTREADY; },
                     std::chrono::seconds(10)));
  });
}

TEST_CASE("pid NODE: the host's processes, and an end that takes all of its own with it",
          "[e2e][table]") {
  run_case([](Case& e) {
    cri::PodSandboxConfig config = e.pod_config();
    namespace_options(config)->set_pid(cri::NODE);
    const Pod pod = e.run_pod(config);
    const auto node = [&](const std::string& script) {
      cri::ContainerConfig container = e.container_config({"sh", "-c", script});
      namespace_options(container)->set_pid(cri::NODE);
      return container;
    };
    const std::string self = std::to_string(::getpid());
    const Finished seen =
        e.run(pod, node("readlink /proc/self/ns/pid; cat /proc/" + self + "/comm"));
    CHECK(seen.log.out ==
          host_namespace("pid") + "\n" + trimmed(read_text("/proc/self/comm")) + "\n");
    // T17: there is no init of a namespace whose end would end the others.
    const Finished end = e.run(pod, node("sleep 3605 & setsid sleep 3606 & echo up; exit 5"));
    CHECK(end.status.exit_code() == 5);
    CHECK(end.log.out == "up\n");
    CHECK(wait_until([] { return processes_with("sleep 3605").empty(); }, std::chrono::seconds(5)));
    CHECK(wait_until([] { return processes_with("sleep 3606").empty(); }, std::chrono::seconds(5)));
    // A container that asks for its own has it.
    CHECK(e.output_of(pod, "echo $$; ls /proc/" + self + " >/dev/null 2>&1 || echo unseen") ==
          "1\nunseen");
  });
}

namespace {

cri::ContainerConfig targeting(Case& e, const Container& target, const std::string& script) {
  cri::ContainerConfig config = e.container_config({"sh", "-c", script});
  namespace_options(config)->set_pid(cri::TARGET);
  namespace_options(config)->set_target_id(target.id);
  return config;
}

}  // namespace

TEST_CASE("pid TARGET: another container's processes are seen and signalled", "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    const Container target =
        e.shell(pod, "trap 'echo told' USR1; echo up; while :; do sleep 0.1; done");
    e.await_output(target, "up\n");
    const Finished end =
        e.run(pod, targeting(e, target,
                             "echo $$; tr '\\0' ' ' </proc/1/cmdline | grep -c told; "
                             "kill -USR1 1 && echo sent"));
    INFO("said: " << end.log.out << end.log.err);
    const std::vector<std::string> lines = lines_of(end.log.out);
    REQUIRE(lines.size() == 3);
    CHECK(lines[0] != "1");
    CHECK(lines[1] == "1");
    CHECK(lines[2] == "sent");
    e.await_output(target, "told\n");
    // Its end is its own: the target goes on, and so do later containers.
    CHECK(e.status(target).state() == cri::CONTAINER_RUNNING);
    const Finished next = e.run(pod, targeting(e, target, "sleep 3607 & exit 6"));
    CHECK(next.status.exit_code() == 6);
    CHECK(wait_until([] { return processes_with("sleep 3607").empty(); }, std::chrono::seconds(5)));
    CHECK(e.status(target).state() == cri::CONTAINER_RUNNING);
  });
}

TEST_CASE("pid TARGET: the end of the target is the end of whoever joined it", "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    const Container target = e.sleeper(pod);
    const Container joined = e.start(pod, targeting(e, target, "echo in; exec sleep 3608"));
    e.await_output(joined, "in\n");
    const auto stopped = e.cri().stop_container(target.id, 0);
    REQUIRE(stopped.has_value());
    CHECK(e.finish(target).status.exit_code() == 137);
    CHECK(e.finish(joined).status.exit_code() == 137);
    CHECK(e.output_of(pod, "echo next") == "next");
  });
}

TEST_CASE("pid TARGET: a container of another pod, or one that has ended, is refused",
          "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    const Pod other = e.run_pod();
    const Container theirs = e.sleeper(other);
    CHECK_FALSE(e.try_create(pod, targeting(e, theirs, "true")).has_value());
    const Container target = e.sleeper(pod);
    const Container late = e.create(pod, targeting(e, target, "true"));
    REQUIRE(e.cri().stop_container(target.id, 0).has_value());
    // containerd sees it itself; that we do, too, has a unit test.
    CHECK_FALSE(e.cri().start_container(late.id).has_value());
  });
}

}  // namespace kuasar::test
