#pragma once

#include <poll.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <filesystem>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

#include "base/files.h"
#include "os/detached_mount.h"
#include "os/direct_spawner.h"
#include "os/fifo.h"
#include "os/pty.h"
#include "support/io_fixture.h"
#include "support/wasm_engine.h"
#include "zygote.h"

namespace kuasar::test {

/// kuasar-wasm-worker beside this program.
std::string worker_program();
/// A field of /proc/PID/status.
std::string status_of(pid_t pid, const std::string& field);
/// WasmEdge of the lab. Skips the test without it, without the modules, without root.
wasm::EngineConfig lab_engine();

/// kuasar-wasm-worker without a daemon: a zygote of this process makes confined children, whose
/// root is the directory of test modules.
struct WasmWorker {
  struct Running {
    os::Process process;
    UniqueFd control;
    UniqueFd out;
    UniqueFd err;
    /// The digest of its module, when it is not in the cache.
    std::string wanted;
  };
  struct Ended {
    /// Why it never ran.
    std::string refusal;
    int code = -1;
    std::string out;
    std::string err;
    std::string wanted;
  };

  IoFixture io;
  os::DirectSpawner spawner;
  wasm::EngineZygote zygote;
  /// A directory of native code for its children; none when it is empty.
  UniqueFd cache;
  /// The root of its children.
  std::string root = wasm_modules();
  int count = 0;

  explicit WasmWorker(wasm::EngineConfig engine = lab_engine())
      : zygote(spawner, std::move(engine), worker_program()) {}

  static wasm::Plan plan(std::vector<std::string> args);
  /// Up to where it waits to be started.
  Result<Running> make(wasm::Plan plan);
  /// It is still loading its module, perhaps. With plan.terminal its streams are a terminal, of
  /// which `out` is the master.
  Result<Running> begin(wasm::Plan plan);
  static void go(const Running& running);
  Ended finish(Running running);
  Ended run_plan(wasm::Plan plan);
  Ended run(std::vector<std::string> args) { return run_plan(plan(std::move(args))); }
};

inline std::string read_pipe(int fd) {
  std::string text;
  char buffer[4096];
  pollfd entry{fd, POLLIN, 0};
  while (::poll(&entry, 1, 10000) == 1) {
    const ssize_t n = ::read(fd, buffer, sizeof buffer);
    if (n <= 0) break;
    text.append(buffer, static_cast<std::size_t>(n));
  }
  return text;
}

inline std::string worker_program() {
  return std::filesystem::read_symlink("/proc/self/exe").parent_path().parent_path() / "bin" /
         "kuasar-wasm-worker";
}

inline std::string status_of(pid_t pid, const std::string& field) {
  std::istringstream lines(read_file(fmt::format("/proc/{}/status", pid)).value_or(""));
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with(field + ":")) continue;
    const std::size_t at = line.find_first_not_of(" 	", field.size() + 1);
    return at == std::string::npos ? "" : line.substr(at);
  }
  return "";
}

inline wasm::EngineConfig lab_engine() {
  if (::geteuid() != 0) SKIP("namespaces need root");
  std::string reason;
  std::optional<wasm::EngineConfig> engine = find_wasmedge(reason);
  if (!engine) SKIP(reason);
  if (wasm_modules().empty()) SKIP("KUASAR_LAB_MODULES names no directory of test modules");
  REQUIRE(os::DirectSpawner::become_subreaper());
  return *engine;
}

inline wasm::Plan WasmWorker::plan(std::vector<std::string> args) {
  wasm::Plan plan;
  std::tie(plan.module, plan.function) = wasm::split_module(args.front());
  args.front() = plan.module;
  plan.args = std::move(args);
  plan.preopens = {{"/", "/", false}};
  plan.cwd = "/";
  plan.uid = 1000;
  plan.gid = 1000;
  return plan;
}

inline Result<WasmWorker::Running> WasmWorker::make(wasm::Plan plan) {
  TRY(Running running, begin(std::move(plan)));
  Result<std::string> ready =
      io.run(wasm::await_ready(running.control.get(), std::chrono::seconds(20), "the child"));
  if (!ready) {
    io.run(spawner.wait(running.process));
    spawner.acknowledge(running.process);
    return fail(ready.error());
  }
  const wasm::Readiness readiness = wasm::decode_readiness(*ready);
  if (!readiness.native) running.wanted = readiness.digest;
  return running;
}

inline Result<WasmWorker::Running> WasmWorker::begin(wasm::Plan plan) {
  os::MountPlan bind;
  bind.flags = MS_BIND;
  bind.source = root;
  TRY(UniqueFd tree, os::make_detached_mount(bind));
  TRY(wasm::SocketPair control, wasm::make_socket_pair());
  TRY(os::OutputPipe out, os::make_output_pipe());
  TRY(os::OutputPipe err, os::make_output_pipe());
  wasm::Request request;
  request.new_pid = 1;
  request.new_mounts = 1;
  std::vector<UniqueFd> fds;
  const auto add = [&](UniqueFd fd) {
    fds.push_back(std::move(fd));
    return static_cast<std::int32_t>(fds.size()) - 1;
  };
  add(UniqueFd());
  add(std::move(control.theirs));
  plan.root = add(std::move(tree));
  plan.root_readonly = true;
  if (plan.terminal) {
    TRY(os::Terminal terminal, os::make_terminal());
    for (std::int32_t& stream : plan.streams) {
      TRY(UniqueFd slave, os::duplicate(terminal.slave.get()));
      stream = add(std::move(slave));
    }
    out.reader = std::move(terminal.master);
    out.workload.reset();
    err.workload.reset();
  } else {
    plan.streams[1] = add(std::move(out.workload));
    plan.streams[2] = add(std::move(err.workload));
  }
  if (cache) {
    TRY(UniqueFd dir, os::duplicate(cache.get()));
    plan.cache = add(std::move(dir));
  }
  TRY(fds[wasm::kPlanFd], wasm::plan_file(plan));
  TRY(const pid_t pid, io.run(zygote.make_child(request, fds), std::chrono::seconds(40)));
  TRY(os::Process process, io.run(spawner.adopt(fmt::format("child{}", ++count), pid)));
  fds.clear();
  return Running{std::move(process), std::move(control.ours), std::move(out.reader),
                 std::move(err.reader), ""};
}

inline void WasmWorker::go(const Running& running) {
  REQUIRE(::send(running.control.get(), "S", 1, 0) == 1);
}

inline WasmWorker::Ended WasmWorker::finish(Running running) {
  Ended ended;
  ended.out = read_pipe(running.out.get());
  ended.err = read_pipe(running.err.get());
  ended.code = io.run(spawner.wait(running.process)).code;
  spawner.acknowledge(running.process);
  ended.wanted = running.wanted;
  return ended;
}

inline WasmWorker::Ended WasmWorker::run_plan(wasm::Plan plan) {
  Result<Running> running = make(std::move(plan));
  if (!running) {
    Ended ended;
    ended.refusal = running.error().message;
    return ended;
  }
  go(*running);
  return finish(std::move(*running));
}

}  // namespace kuasar::test
