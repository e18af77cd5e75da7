#include <fmt/format.h>

#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <cstdlib>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "e2e/table.h"
#include "support/process.h"
#include "support/stream_client.h"
#include "support/wait.h"

// Terminals, standard input and attach, through containerd's streaming server.

namespace kuasar::test {
namespace {

constexpr std::chrono::seconds kPatience(20);

std::string exec_url(Case& e, const Container& container, const std::vector<std::string>& command,
                     bool tty) {
  cri::ExecRequest request;
  request.set_container_id(container.id);
  for (const std::string& word : command) request.add_cmd(word);
  request.set_tty(tty);
  request.set_stdin(true);
  request.set_stdout(true);
  request.set_stderr(!tty);
  const auto url = e.cri().exec(request);
  INFO("Exec: " << (url ? "" : url.error().message));
  REQUIRE(url.has_value());
  return *url;
}

std::string attach_url(Case& e, const Container& container, bool tty) {
  cri::AttachRequest request;
  request.set_container_id(container.id);
  request.set_tty(tty);
  request.set_stdin(true);
  request.set_stdout(true);
  request.set_stderr(!tty);
  const auto url = e.cri().attach(request);
  INFO("Attach: " << (url ? "" : url.error().message));
  REQUIRE(url.has_value());
  return *url;
}

cri::ContainerConfig interactive(Case& e, const std::string& script, bool tty) {
  cri::ContainerConfig config = e.container_config({"sh", "-c", script});
  config.set_stdin(true);
  config.set_tty(tty);
  return config;
}

std::string sha256(Case& e, const std::string& text) {
  const auto file = e.scratch() / "bytes";
  write_text(file, text);
  const Finished end = [&] {
    cri::ContainerConfig config = e.container_config({"sha256sum", "/data/bytes"});
    cri::Mount* mount = config.add_mounts();
    mount->set_host_path(e.scratch());
    mount->set_container_path("/data");
    return e.run(e.run_pod(), config);
  }();
  return end.log.out.substr(0, 64);
}

// 1 MiB of lines without control characters.
std::string a_mebibyte() {
  std::string text;
  for (int i = 0; text.size() < (1 << 20); ++i) text += fmt::format("{:07}\n", i);
  text.resize(1 << 20);
  return text;
}

// containerd passes on a client's input before it adds the client to those that get the output
// (container_io.go, Attach): an answer that comes at once can be missed.
void let_attach_settle() {
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
}

}  // namespace

TEST_CASE("tty: an exec's terminal has the size that was asked for", "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    const Container container = e.sleeper(pod);
    StreamClient shell(exec_url(e, container, {"sh"}, true));
    for (const auto& [width, height] : {std::pair(97, 31), std::pair(120, 40)}) {
      shell.resize(width, height);
      const std::string wanted = fmt::format("{} {}\r\n", height, width);
      // The resize has no answer: ask until it has come through.
      CHECK(wait_until(
          [&] {
            shell.type("stty size\n");
            return shell.await(wanted, std::chrono::seconds(1));
          },
          kPatience));
    }
    shell.type("tty; exit 5\n");
    CHECK(shell.await_end());
    CHECK(shell.out().find("/dev/pts/") != std::string::npos);
    CHECK(shell.exit_code() == 5);
  });
}

TEST_CASE("tty: ^C interrupts, ^D ends the input", "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    const Container container = e.sleeper(pod);
    const std::string script =
        "trap 'echo caught; exit 9' INT; echo up; while :; do sleep 0.05; done";
    StreamClient loop(exec_url(e, container, {"sh", "-c", script}, true));
    REQUIRE(loop.await("up\r\n"));
    loop.type("\x03");
    CHECK(loop.await_end());
    CHECK(loop.out().find("caught") != std::string::npos);
    CHECK(loop.exit_code() == 9);

    StreamClient cat(exec_url(e, container, {"cat"}, true));
    cat.type("hello\n");
    REQUIRE(cat.await("hello\r\nhello\r\n"));
    cat.type("\x04");
    CHECK(cat.await_end());
    CHECK(cat.exit_code() == 0);
  });
}

TEST_CASE("stdin: 1 MiB through an exec, by a pipe and by a terminal", "[e2e][table]") {
  run_case([](Case& e) {
    const std::string text = a_mebibyte();
    const std::string wanted = sha256(e, text);
    REQUIRE(wanted.size() == 64);
    const Pod pod = e.run_pod();
    const Container container = e.sleeper(pod);
    const std::string count = "head -c 1048576 | sha256sum; exit 4";
    StreamClient plain(exec_url(e, container, {"sh", "-c", count}, false));
    plain.type(text);
    CHECK(plain.await(wanted));
    CHECK(plain.await_end());
    CHECK(plain.exit_code() == 4);

    StreamClient tty(
        exec_url(e, container, {"sh", "-c", "stty raw -echo; echo ready; " + count}, true));
    REQUIRE(tty.await("ready"));
    tty.type(text);
    CHECK(tty.await(wanted));
    CHECK(tty.await_end());
    CHECK(tty.exit_code() == 4);
  });
}

TEST_CASE("stdin: 1 MiB there and back through cat, in a terminal and without", "[e2e][table]") {
  for (const bool tty : {false, true}) {
    DYNAMIC_SECTION((tty ? "tty" : "pipe")) {
      run_case([tty](Case& e) {
        const std::string text = a_mebibyte();
        const Pod pod = e.run_pod();
        const Container container = e.sleeper(pod);
        const std::string script =
            std::string(tty ? "stty raw -echo; " : "") + "echo ready; exec cat";
        StreamClient cat(exec_url(e, container, {"sh", "-c", script}, tty));
        REQUIRE(cat.await("ready"));
        const std::size_t head = cat.out().find('\n') + 1;
        cat.type(text);
        // The last line of the text stands nowhere else in it.
        REQUIRE(cat.await(text.substr(text.size() - 8)));
        const std::string back = cat.out().substr(head);
        CHECK(back.size() == text.size());
        CHECK((back == text));
      });
    }
  }
}

TEST_CASE("stdin: hanging up ends an exec's input (CloseIO)", "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    const Container container = e.sleeper(pod);
    {
      StreamClient cat(
          exec_url(e, container, {"sh", "-c", "echo up; cat >/got; echo $? >/ended"}, false));
      REQUIRE(cat.await("up\n"));
      cat.type("all of it");
    }
    std::string seen;
    wait_until(
        [&] {
          const auto answer = e.cri().exec_sync(container.id, {"cat", "/got", "/ended"}, 0);
          if (answer) seen = answer->stdout();
          return seen == "all of it0\n";
        },
        kPatience);
    CHECK(seen == "all of it0\n");
  });
}

TEST_CASE("attach: to a terminal, detach, attach again, size, end", "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    const Container container =
        e.start(pod, interactive(e,
                                 "echo up; while read line; do echo got-$line; [ $line = end ] "
                                 "&& exit 6; [ $line = size ] && stty size; done; echo eof",
                                 true));
    e.await_output(container, "up");
    for (const char* word : {"one", "two"}) {
      StreamClient attached(attach_url(e, container, true));
      let_attach_settle();
      attached.type(std::string(word) + "\n");
      CHECK(attached.await(std::string("got-") + word));
    }
    CHECK(e.status(container).state() == cri::CONTAINER_RUNNING);
    StreamClient attached(attach_url(e, container, true));
    let_attach_settle();
    attached.resize(66, 22);
    CHECK(wait_until(
        [&] {
          attached.type("size\n");
          return attached.await("22 66", std::chrono::seconds(1));
        },
        kPatience));
    attached.type("end\n");
    CHECK(attached.await_end());
    const Finished end = e.finish(container);
    CHECK(end.status.exit_code() == 6);
    CHECK(end.log.out.find("got-end") != std::string::npos);
  });
}

TEST_CASE("attach: to a pipe, detach, attach again; stdin_once ends with the client",
          "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    const std::string script =
        "echo up; while read line; do echo got-$line; done; echo eof; exit 8";
    const Container kept = e.start(pod, interactive(e, script, false));
    e.await_output(kept, "up");
    for (const char* word : {"one", "two", "three"}) {
      StreamClient attached(attach_url(e, kept, false));
      let_attach_settle();
      attached.type(std::string(word) + "\n");
      CHECK(attached.await(std::string("got-") + word));
    }
    CHECK(e.status(kept).state() == cri::CONTAINER_RUNNING);
    e.await_output(kept, "got-three\n");
    CHECK(e.log(kept).out == "up\ngot-one\ngot-two\ngot-three\n");

    cri::ContainerConfig once = interactive(e, script, false);
    once.set_stdin_once(true);
    const Container container = e.start(pod, once);
    e.await_output(container, "up");
    {
      StreamClient attached(attach_url(e, container, false));
      let_attach_settle();
      attached.type("only\n");
      CHECK(attached.await("got-only"));
    }
    const Finished end = e.finish(container);
    CHECK(end.status.exit_code() == 8);
    CHECK(end.log.out == "up\ngot-only\neof\n");
  });
}

TEST_CASE("tty: a container's log has its terminal's output, complete", "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    cri::ContainerConfig config = e.container_config(
        {"sh", "-c",
         "stty -opost; i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done; "
         "exit 3"});
    config.set_tty(true);
    const Finished end = e.finish(e.start(pod, config));
    CHECK(end.status.exit_code() == 3);
    std::string wanted;
    for (int i = 0; i < 5000; ++i) wanted += fmt::format("line {}\n", i);
    CHECK((end.log.out == wanted));
  });
}

TEST_CASE("T22: what a container says and how it ends while containerd is away is kept",
          "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("exit codes and output kept over a restart of containerd");
    const Pod pod = e.run_pod();
    const Container container =
        e.shell(pod,
                "echo up; until [ -e /go ]; do sleep 0.02; done; i=0; "
                "while [ $i -lt 4000 ]; do echo number $i; i=$((i+1)); done; exit 21");
    e.await_output(container, "up\n");
    REQUIRE(e.cri()
                .exec_sync(container.id, {"sh", "-c", "(sleep 1; touch /go) >/dev/null 2>&1 &"}, 0)
                .has_value());
    e.lab().stop_containerd();
    CHECK(wait_until([&] { return processes_with("echo number").empty(); }, kPatience));
    e.lab().start_containerd();
    const Finished end = e.finish(container);
    CHECK(end.status.exit_code() == 21);
    std::string wanted = "up\n";
    for (int i = 0; i < 4000; ++i) wanted += fmt::format("number {}\n", i);
    CHECK((end.log.out == wanted));
  });
}

}  // namespace kuasar::test
