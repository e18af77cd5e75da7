#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <filesystem>
#include <string>
#include <vector>

#include "async/task_group.h"
#include "kuasar/state/v1/state.pb.h"
#include "os/fifo.h"
#include "support/wait.h"
#include "task/task_service.h"
#include "unit/task_fixture.h"

// Execs in the Task API: every method in every state, order and races, recovery.

namespace kuasar::task {
namespace {

using namespace std::chrono_literals;
using test::about;
using test::answer_of;
using test::code_of;
using Record = state::v1::ContainerState;
using ExecRecord = state::v1::ExecState;
using Calls = std::vector<std::string>;

constexpr const char* kProcessType = "types.containerd.io/opencontainers/runtime-spec/1/Process";

struct ExecFixture : test::TaskFixture {
  api::ExecProcessRequest exec_request(const std::string& exec, const std::string& id = "c1") {
    auto request = about<api::ExecProcessRequest>(id, exec);
    request.mutable_spec()->set_type_url(kProcessType);
    request.mutable_spec()->set_value(R"({"args":["true"],"cwd":"/"})");
    return request;
  }
  Result<google::protobuf::Empty> exec(const std::string& name) {
    return io.run(service.exec(exec_request(name), context()));
  }
  /// A running container "c1", and nothing noted so far.
  void running() {
    REQUIRE(create("c1"));
    REQUIRE(start("c1"));
    driver.calls.clear();
    sink.topics.clear();
  }
  void running_exec(const std::string& name) {
    REQUIRE(exec(name));
    REQUIRE(start("c1", name));
  }
  std::string process_file(const std::string& name) const {
    return pods.dir + "/exec-" + name + ".json";
  }
  Result<google::protobuf::Empty> close_io(const std::string& name) {
    auto request = about<api::CloseIORequest>("c1", name);
    request.set_stdin(true);
    return io.run(service.close_io(std::move(request), context()));
  }
  Result<google::protobuf::Empty> resize(const std::string& name, std::uint32_t width) {
    auto request = about<api::ResizePtyRequest>("c1", name);
    request.set_width(width);
    request.set_height(31);
    return io.run(service.resize_pty(std::move(request), context()));
  }
  std::shared_ptr<Record> record_with(ExecRecord::Phase phase, int pid) {
    auto record = std::make_shared<Record>();
    record->set_id("c1");
    record->set_sandbox_id("p1");
    record->set_phase(Record::RUNNING);
    record->set_bundle((dir / "c1").native());
    record->mutable_init()->set_pid(10);
    ExecRecord* exec_record = record->add_execs();
    exec_record->set_id("e1");
    exec_record->set_phase(phase);
    exec_record->mutable_process()->set_pid(pid);
    exec_record->set_exit_status(6);
    return record;
  }
};

template <typename Request, typename Answer>
Task<> note(Answer (TaskService::*method)(Request, ttrpc::CallContext), TaskService& service,
            Request request, ttrpc::CallContext context, Calls& out) {
  const auto result = co_await answer_of((service.*method)(std::move(request), std::move(context)));
  std::string text = result ? "ok" : std::string(code_name(result.error().code));
  if constexpr (requires { result->exit_status(); }) {
    if (result) text = std::to_string(result->exit_status());
  }
  out.push_back(text);
}

TEST_CASE_METHOD(ExecFixture, "exec: a life from Exec to Delete, events in order") {
  running();
  REQUIRE(exec("e1"));
  CHECK(std::filesystem::exists(process_file("e1")));
  CHECK((std::filesystem::status(process_file("e1")).permissions() ==
         (std::filesystem::perms::owner_read | std::filesystem::perms::owner_write)));
  CHECK(state("c1", "e1")->status() == ::containerd::v1::types::CREATED);
  CHECK(state("c1", "e1")->pid() == 0);
  CHECK(state("c1", "e1")->exec_id() == "e1");
  CHECK(start("c1", "e1")->pid() == 4343);
  CHECK_FALSE(std::filesystem::exists(process_file("e1")));
  CHECK(state("c1", "e1")->status() == ::containerd::v1::types::RUNNING);
  driver.end("c1/e1", 7);
  CHECK(wait("c1", "e1")->exit_status() == 7);
  CHECK(state("c1", "e1")->status() == ::containerd::v1::types::STOPPED);
  CHECK(state("c1", "e1")->exit_status() == 7);
  const auto removed = remove("c1", "e1");
  REQUIRE(removed);
  CHECK(removed->exit_status() == 7);
  CHECK(removed->exited_at().seconds() > 0);
  CHECK(code_of(state("c1", "e1")) == Code::kNotFound);
  CHECK(driver.calls == Calls{"exec c1/e1", "reap c1/e1", "forget c1/e1"});
  CHECK(sink.topics == Calls{"/tasks/exec-added", "/tasks/exec-started", "/tasks/exit"});
  CHECK(state("c1")->status() == ::containerd::v1::types::RUNNING);
  CHECK(exec("e1"));
}

TEST_CASE_METHOD(ExecFixture, "exec: its zombie stays until its end is on record") {
  running();
  running_exec("e1");
  pods.save_error = Error::make(Code::kResourceExhausted, "no space left");
  driver.end("c1/e1", 7);
  CHECK(wait("c1", "e1")->exit_status() == 7);
  CHECK(driver.calls == Calls{"exec c1/e1"});
  CHECK(remove("c1", "e1")->exit_status() == 7);
  CHECK(driver.calls == Calls{"exec c1/e1", "forget c1/e1"});
}

TEST_CASE_METHOD(ExecFixture, "exec: what is out of order is refused in words") {
  CHECK(code_of(exec("e1")) == Code::kNotFound);
  REQUIRE(create("c1"));
  CHECK(code_of(exec("e1")) == Code::kFailedPrecondition);
  REQUIRE(start("c1"));
  CHECK(code_of(start("c1", "e1")) == Code::kNotFound);
  REQUIRE(exec("e1"));
  CHECK(code_of(exec("e1")) == Code::kAlreadyExists);
  ttrpc::CallContext again = context();
  again.redelivered = true;
  CHECK(io.run(service.exec(exec_request("e1"), again)));
  CHECK(code_of(kill("c1", 9, false, "e1")) == Code::kFailedPrecondition);
  REQUIRE(start("c1", "e1"));
  CHECK(code_of(start("c1", "e1")) == Code::kFailedPrecondition);
  CHECK(code_of(remove("c1", "e1")) == Code::kFailedPrecondition);
  REQUIRE(kill("c1", 9, false, "e1"));
  CHECK(wait("c1", "e1")->exit_status() == 137);
  const auto killed = kill("c1", 9, false, "e1");
  CHECK(code_of(killed) == Code::kNotFound);
  CHECK(killed.error().message == "exec e1 of container c1: process already finished");
  CHECK(code_of(start("c1", "e1")) == Code::kFailedPrecondition);
  CHECK(remove("c1", "e1")->exit_status() == 137);
  CHECK(remove("c1", "e1")->exit_status() == 137);
  CHECK(code_of(remove("c1", "e2")) == Code::kNotFound);
  driver.end_init("c1", 0);
  REQUIRE(wait("c1"));
  CHECK(code_of(exec("e2")) == Code::kFailedPrecondition);
}

TEST_CASE_METHOD(ExecFixture, "exec: ids and specs that cannot be") {
  running();
  for (const std::string& name : {std::string(".."), std::string("a/b"), std::string("-"),
                                  std::string(), std::string(200, 'x')}) {
    CHECK(code_of(exec(name)) == Code::kInvalidArgument);
  }
  auto request = exec_request("e1");
  request.mutable_spec()->set_type_url("google.protobuf.Empty");
  CHECK(code_of(io.run(service.exec(request, context()))) == Code::kInvalidArgument);
  request = exec_request("e1");
  request.mutable_spec()->set_value(R"({"args":[],"cwd":"/"})");
  const auto refused = io.run(service.exec(request, context()));
  CHECK(code_of(refused) == Code::kInvalidArgument);
  CHECK(refused.error().message == "process.args: must not be empty");
  CHECK(sink.topics.empty());
  CHECK(code_of(state("c1", "e1")) == Code::kNotFound);
}

TEST_CASE_METHOD(ExecFixture, "exec: Wait before Start blocks, many wait, Delete lets go") {
  running();
  REQUIRE(exec("e1"));
  REQUIRE(exec("e2"));
  Calls out;
  TaskGroup group(io.executor());
  for (const char* name : {"e1", "e1", "e2"}) {
    group.spawn(
        note(&TaskService::wait, service, about<api::WaitRequest>("c1", name), context(), out));
  }
  io.settle();
  REQUIRE(start("c1", "e1"));
  io.settle();
  CHECK(out.empty());
  driver.end("c1/e1", 5);
  io.settle();
  CHECK(out == Calls{"5", "5"});
  REQUIRE(remove("c1", "e2"));
  io.run(group.join());
  CHECK(out == Calls{"5", "5", "NOT_FOUND"});
}

TEST_CASE_METHOD(ExecFixture, "exec: a failed start tells why, is stopped, and can be deleted") {
  running();
  driver.exec_error = Error::make(Code::kUnknown, "OCI runtime exec failed: no such program");
  REQUIRE(exec("e1"));
  const auto started = start("c1", "e1");
  CHECK(code_of(started) == Code::kUnknown);
  CHECK(started.error().message == "OCI runtime exec failed: no such program");
  CHECK(state("c1", "e1")->status() == ::containerd::v1::types::STOPPED);
  CHECK(state("c1", "e1")->exit_status() == 255);
  CHECK(wait("c1", "e1")->exit_status() == 255);
  CHECK(remove("c1", "e1")->exit_status() == 255);
  CHECK_FALSE(std::filesystem::exists(process_file("e1")));
  CHECK(holder.size() == 0);
  CHECK(sink.topics == Calls{"/tasks/exec-added"});
}

TEST_CASE_METHOD(ExecFixture, "exec: two start at once, each its own way") {
  running();
  Event hold;
  driver.hold_exec = &hold;
  REQUIRE(exec("slow"));
  REQUIRE(exec("quick"));
  Calls out;
  TaskGroup group(io.executor());
  group.spawn(
      note(&TaskService::start, service, about<api::StartRequest>("c1", "slow"), context(), out));
  io.settle();
  CHECK(state("c1", "slow")->status() == ::containerd::v1::types::CREATED);
  driver.hold_exec = nullptr;
  REQUIRE(start("c1", "quick"));
  driver.end("c1/quick", 1);
  CHECK(wait("c1", "quick")->exit_status() == 1);
  CHECK(out.empty());
  // A Kill while it starts waits for the start.
  auto kill_slow = about<api::KillRequest>("c1", "slow");
  kill_slow.set_signal(9);
  group.spawn(note(&TaskService::kill, service, kill_slow, context(), out));
  io.settle();
  hold.set();
  io.run(group.join());
  CHECK(out == Calls{"ok", "ok"});
  CHECK(wait("c1", "slow")->exit_status() == 137);
}

TEST_CASE_METHOD(ExecFixture, "T17 exec: the init's end ends its execs, and is told after them") {
  pods.shared_pid = true;
  running();
  running_exec("e1");
  running_exec("e2");
  sink.topics.clear();
  Calls out;
  TaskGroup group(io.executor());
  group.spawn(note(&TaskService::wait, service, about<api::WaitRequest>("c1"), context(), out));
  group.spawn(
      note(&TaskService::wait, service, about<api::WaitRequest>("c1", "e1"), context(), out));
  group.spawn(
      note(&TaskService::wait, service, about<api::WaitRequest>("c1", "e2"), context(), out));
  io.settle();
  driver.end_init("c1", 3);
  io.run(group.join());
  CHECK(out == Calls{"137", "137", "3"});
  CHECK(sink.topics == Calls{"/tasks/exit", "/tasks/exit", "/tasks/exit"});
  REQUIRE(remove("c1"));
  CHECK(code_of(state("c1", "e1")) == Code::kNotFound);
  CHECK(holder.size() == 0);
}

TEST_CASE_METHOD(ExecFixture,
                 "exec: the output's FIFO ends with the process, not with its Delete") {
  running();
  const std::filesystem::path fifo = dir / "out";
  REQUIRE(::mkfifo(fifo.c_str(), 0600) == 0);
  const UniqueFd containerd(::open(fifo.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  auto request = exec_request("e1");
  request.set_stdout(fifo.native());
  driver.exec_says = "words";
  REQUIRE(io.run(service.exec(request, context())));
  REQUIRE(start("c1", "e1"));
  driver.end("c1/e1", 0);
  REQUIRE(wait("c1", "e1"));
  io.settle();
  char buffer[16];
  CHECK(::read(containerd.get(), buffer, sizeof buffer) == 5);
  CHECK(::read(containerd.get(), buffer, sizeof buffer) == 0);
  CHECK(holder.get("io/c1/e1/stdout.r").error().code == Code::kNotFound);
  REQUIRE(remove("c1", "e1"));
  CHECK(holder.size() == 0);
}

TEST_CASE_METHOD(ExecFixture, "exec: CloseIO before, during and after closes once") {
  running();
  const std::filesystem::path fifo = dir / "in";
  REQUIRE(::mkfifo(fifo.c_str(), 0600) == 0);
  for (const char* name : {"early", "late"}) {
    auto request = exec_request(name);
    request.set_stdin(fifo.native());
    REQUIRE(io.run(service.exec(request, context())));
  }
  REQUIRE(close_io("early"));
  REQUIRE(start("c1", "early"));
  CHECK(code_of(holder.get("io/c1/early/stdin.w")) == Code::kNotFound);
  REQUIRE(start("c1", "late"));
  CHECK(holder.get("io/c1/late/stdin.w"));
  // The end and CloseIO in one turn of the io thread.
  driver.end("c1/late", 0);
  REQUIRE(close_io("late"));
  REQUIRE(wait("c1", "late"));
  REQUIRE(close_io("late"));
  CHECK(code_of(close_io("never")) == Code::kNotFound);
  CHECK(code_of(resize("late", 80)) == Code::kFailedPrecondition);
  CHECK(code_of(resize("late", 70000)) == Code::kInvalidArgument);
}

TEST_CASE_METHOD(ExecFixture, "exec: a full state disk spares what runs") {
  running();
  running_exec("e1");
  pods.save_error = Error::make(Code::kResourceExhausted, "disk full");
  driver.end("c1/e1", 2);
  CHECK(wait("c1", "e1")->exit_status() == 2);
  CHECK(remove("c1", "e1"));
}

TEST_CASE_METHOD(ExecFixture, "exec: recovery of one that runs, and of one that is gone") {
  const bool alive = GENERATE(true, false);
  io.run(service.recover(pods.dir, record_with(ExecRecord::RUNNING, alive ? 20 : 0)));
  if (alive) {
    CHECK(state("c1", "e1")->status() == ::containerd::v1::types::RUNNING);
    driver.end("c1/e1", 4);
    CHECK(wait("c1", "e1")->exit_status() == 4);
  } else {
    CHECK(wait("c1", "e1")->exit_status() == 255);
  }
  CHECK(sink.topics == Calls{"/tasks/exit"});
  CHECK(remove("c1", "e1"));
}

TEST_CASE_METHOD(ExecFixture, "exec: recovery of one that was being started never runs it twice") {
  const auto record = record_with(ExecRecord::STARTING, 0);
  SECTION("the runtime has run it") {
    io.run(service.recover(pods.dir, record));
    io.settle();
    CHECK(state("c1", "e1")->status() == ::containerd::v1::types::RUNNING);
    CHECK(code_of(start("c1", "e1")) == Code::kFailedPrecondition);
  }
  SECTION("the runtime could not") {
    driver.resumed = fail(Code::kUnknown, "OCI runtime exec failed: x");
    io.run(service.recover(pods.dir, record));
    io.settle();
    CHECK(state("c1", "e1")->status() == ::containerd::v1::types::STOPPED);
    CHECK(wait("c1", "e1")->exit_status() == 255);
  }
  SECTION("it was never asked to") {
    driver.resumed = fail(Code::kNotFound, "never run");
    io.run(service.recover(pods.dir, record));
    io.settle();
    CHECK(state("c1", "e1")->status() == ::containerd::v1::types::CREATED);
    CHECK(start("c1", "e1"));
    CHECK(driver.calls == Calls{"recover c1", "resume c1/e1", "exec c1/e1"});
  }
}

TEST_CASE_METHOD(ExecFixture, "exec: calls that an earlier daemon did not answer are softened") {
  ttrpc::CallContext again = context();
  again.redelivered = true;
  const auto start_again = [&](const std::string& name) {
    return io.run(service.start(about<api::StartRequest>("c1", name), again));
  };
  running();
  CHECK(start_again("")->pid() == 4242);
  running_exec("e1");
  CHECK(start_again("e1")->pid() == 4343);
  driver.end("c1/e1", 0);
  REQUIRE(wait("c1", "e1"));
  CHECK(start_again("e1")->pid() == 4343);
  auto kill_again = about<api::KillRequest>("c1", "e1");
  kill_again.set_signal(9);
  CHECK(io.run(service.kill(kill_again, again)));
  CHECK(driver.calls == Calls{"exec c1/e1", "reap c1/e1"});
  driver.exec_error = Error::make(Code::kUnknown, "OCI runtime exec failed: x");
  REQUIRE(exec("e2"));
  CHECK_FALSE(start("c1", "e2"));
  CHECK(start_again("e2").error().message == "OCI runtime exec failed: x");
}

TEST_CASE_METHOD(ExecFixture,
                 "T22: an exec that others wait for does not wait for a containerd that is away") {
  running();
  const std::string fifo = dir / "out";
  REQUIRE(::mkfifo(fifo.c_str(), 0600) == 0);
  const UniqueFd reader(::open(fifo.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  REQUIRE(reader);
  auto request = exec_request("e1");
  request.set_stdout(fifo);
  REQUIRE(io.run(service.exec(std::move(request), context())));
  driver.exec_says = "out";
  REQUIRE(start("c1", "e1"));
  peer->closed_event().set();
  const auto others = std::make_shared<ttrpc::Peer>(2);
  driver.end("c1/e1", 3);
  const auto end = io.run(service.await_exit("c1", "e1", others));
  REQUIRE(end);
  CHECK(end->exit_status() == 3);
  char buffer[8];
  CHECK(::read(reader.get(), buffer, sizeof buffer) == 3);
  // Nobody holds the writing end: the end of the file is there, with no State of containerd's.
  CHECK(test::wait_until(
      [&] {
        io.settle();
        return ::read(reader.get(), buffer, sizeof buffer) == 0;
      },
      std::chrono::seconds(5)));
}

TEST_CASE_METHOD(ExecFixture, "exec: recovery keeps the ended, and the not yet started") {
  io.run(service.recover(pods.dir, record_with(ExecRecord::STOPPED, 20)));
  CHECK(wait("c1", "e1")->exit_status() == 6);
  CHECK(driver.calls == Calls{"recover c1", "recover c1/e1", "reap c1/e1"});
  CHECK(remove("c1", "e1")->exit_status() == 6);
  REQUIRE(io.run(service.remove_all("p1")));
  io.run(service.recover(pods.dir, record_with(ExecRecord::CREATED, 0)));
  CHECK(state("c1", "e1")->status() == ::containerd::v1::types::CREATED);
  CHECK(start("c1", "e1"));
}

TEST_CASE_METHOD(ExecFixture,
                 "T12 exec: output that ended while the daemon was replaced is let go of") {
  const std::filesystem::path out = dir / "out";
  REQUIRE(::mkfifo(out.c_str(), 0600) == 0);
  os::OutputFifo fifo = os::open_output_fifo(out).value();
  REQUIRE(holder.hold("io/c1/e1/stdout.r", fifo.reader.get()));
  REQUIRE(holder.hold("io/c1/e1/stdout.w", fifo.writer.get()));
  const UniqueFd containerd(::open(out.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  REQUIRE(containerd);
  const auto record = record_with(ExecRecord::STOPPED, 20);
  record->mutable_execs(0)->set_stdout(out.native());
  record->mutable_connection()->set_id(peer->id());
  fifo = os::OutputFifo();

  io.run(service.recover(pods.dir, record));
  char byte = 0;
  CHECK(::read(containerd.get(), &byte, 1) == -1);
  SECTION("its Wait has not been read yet: the connection is there") {
    service.connections_are_back({{peer->id(), peer}});
  }
  SECTION("its Wait was answered: the container's own is delivered again") {
    ttrpc::CallContext again = context();
    again.redelivered = true;
    REQUIRE(service.wait(about<api::WaitRequest>("c1"), again));
  }
  io.settle();
  // The end of the output: containerd waits for it without a timeout.
  CHECK(::read(containerd.get(), &byte, 1) == 0);
}

}  // namespace
}  // namespace kuasar::task
