#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <filesystem>
#include <string>

#include "async/fair_gate.h"
#include "async/task_group.h"
#include "kuasar/state/v1/state.pb.h"
#include "oci/runtimes.h"
#include "os/direct_spawner.h"
#include "os/fifo.h"
#include "support/wait.h"
#include "task/oci_driver.h"
#include "task/task_service.h"
#include "unit/task_fixture.h"

// What containerd's reader sees of a container's output while daemons come and go: it reads on
// until the last writer has closed, and then never opens the FIFO again.

namespace kuasar::task {
namespace {

using namespace std::chrono_literals;
using test::about;
using test::answer_of;
using Record = state::v1::ContainerState;
using ExecRecord = state::v1::ExecState;

struct RecoveryFixture : test::TaskFixture {
  std::string out = (dir / "out").native();
  UniqueFd containerd;

  RecoveryFixture() {
    REQUIRE(::mkfifo(out.c_str(), 0600) == 0);
    std::filesystem::create_directory(dir / "c1");
  }

  /// An earlier daemon's ends of the output of `exec` ("-": the init), in the holder; with `pipe`
  /// those of one that is pumped, which has said something that nobody has moved yet.
  void hold_output(const std::string& exec, bool pipe) {
    const auto fifo = os::open_output_fifo(out);
    REQUIRE(fifo);
    const std::string prefix = "io/c1/" + exec + "/stdout.";
    REQUIRE(holder.hold(prefix + "r", fifo->reader.get()));
    REQUIRE(holder.hold(prefix + "w", fifo->writer.get()));
    if (pipe) {
      const auto ends = os::make_output_pipe();
      REQUIRE(ends);
      REQUIRE(holder.hold(prefix + "pipe", ends->reader.get()));
      REQUIRE(::write(ends->workload.get(), "said\n", 5) == 5);
    }
    containerd.reset(::open(out.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  }
  /// "open" while somebody may still write, "end" when nobody can.
  std::string read_output() const {
    char bytes[100];
    const ssize_t size = ::read(containerd.get(), bytes, sizeof bytes);
    if (size < 0) return "open";
    return size == 0 ? "end" : std::string(bytes, static_cast<std::size_t>(size));
  }
  bool comes_to(const std::string& what) {
    for (int i = 0; i < 500; ++i) {
      if (read_output() == what) return true;
      io.run(sleep_for(10ms));
    }
    return false;
  }
  std::shared_ptr<Record> record(Record::Phase phase) const {
    auto record = std::make_shared<Record>();
    record->set_id("c1");
    record->set_sandbox_id("p1");
    record->set_phase(phase);
    record->set_bundle((dir / "c1").native());
    record->set_stdout(out);
    record->mutable_init()->set_pid(10);
    record->mutable_connection()->set_id(peer->id());
    return record;
  }
  ExecRecord* add_exec(Record& record, ExecRecord::Phase phase) const {
    record.set_stdout("");
    ExecRecord* exec = record.add_execs();
    exec->set_id("e1");
    exec->set_phase(phase);
    exec->set_stdout(out);
    exec->mutable_process()->set_pid(20);
    return exec;
  }
  ttrpc::CallContext again() {
    ttrpc::CallContext context = this->context();
    context.redelivered = true;
    return context;
  }
};

Task<> ask_state(TaskService& service, ttrpc::CallContext context, bool& answered) {
  auto request = about<api::StateRequest>("c1");
  answered = (co_await service.state(std::move(request), std::move(context))).has_value();
}

}  // namespace

TEST_CASE_METHOD(RecoveryFixture, "T22 recovery: State gives the readers that it let come time") {
  hold_output("-", false);
  REQUIRE(::write(holder.get("io/c1/-/stdout.w")->get(), "said\n", 5) == 5);
  io.run(service.recover(pods.dir, record(Record::STOPPED)));
  service.connections_are_back({{peer->id(), nullptr}});
  ttrpc::CallContext restarted = context();
  restarted.peer = std::make_shared<ttrpc::Peer>(2);
  // containerd opens its reader after this one, and after the next ones would not wait for it.
  CHECK(io.run(service.state(about<api::StateRequest>("c1"), restarted)));
  bool answered = false;
  TaskGroup group(io.executor());
  group.spawn(ask_state(service, restarted, answered));
  io.settle();
  CHECK_FALSE(answered);
  SECTION("it reads") {
    CHECK(read_output() == "said\n");
    io.run(group.join());
    CHECK(comes_to("end"));
  }
  SECTION("it never does") {
    io.run(group.join());
    CHECK(read_output() == "said\n");
  }
  CHECK(answered);
}

TEST_CASE_METHOD(RecoveryFixture, "recovery: an exec that ended before its Wait came again") {
  hold_output("e1", true);
  auto running = record(Record::RUNNING);
  add_exec(*running, ExecRecord::RUNNING);
  io.run(service.recover(pods.dir, running));
  driver.end("c1/e1", 9);
  io.settle();
  CHECK(comes_to("said\n"));
  CHECK(read_output() == "open");
  SECTION("with the exec's own Wait") {
    const auto answer =
        io.run(answer_of(service.wait(about<api::WaitRequest>("c1", "e1"), again())));
    CHECK(answer->exit_status() == 9);
  }
  SECTION("with any call of that connection") {
    CHECK(io.run(service.connect(about<api::ConnectRequest>("c1"), again())));
  }
  SECTION("with that connection, before any call") {
    service.connections_are_back({{peer->id(), peer}});
  }
  CHECK(comes_to("end"));
}

TEST_CASE_METHOD(RecoveryFixture, "T22 recovery: a Create is undone and its output stays open") {
  hold_output("-", false);
  io.run(service.recover(pods.dir, record(Record::CREATING)));
  CHECK(read_output() == "open");
  SECTION("the Create comes again: its container writes, and its end is the end") {
    auto request = create_request("c1");
    request.set_stdout(out);
    REQUIRE(io.run(service.create(request, again())));
    service.connections_are_back({});
    CHECK(read_output() == "open");
    REQUIRE(start("c1"));
    driver.end_init("c1", 3);
    CHECK(wait("c1")->exit_status() == 3);
    CHECK(comes_to("end"));
    REQUIRE(remove("c1"));
  }
  SECTION("it does not: nobody waits for more") {
    service.connections_are_back({});
    CHECK(read_output() == "end");
  }
  SECTION("it comes again and fails: nobody waits for more") {
    driver.create_error = Error::make(Code::kUnknown, "no such program");
    auto request = create_request("c1");
    request.set_stdout(out);
    CHECK_FALSE(io.run(service.create(request, again())));
    CHECK(read_output() == "end");
  }
  CHECK(holder.size() == 0);
}

TEST_CASE_METHOD(RecoveryFixture, "T22 recovery: an exec that never ran keeps its output open") {
  hold_output("e1", false);
  auto running = record(Record::RUNNING);
  add_exec(*running, ExecRecord::STARTING);
  driver.resumed = fail(Code::kNotFound, "never run");
  io.run(service.recover(pods.dir, running));
  io.settle();
  CHECK(read_output() == "open");
  SECTION("its Start comes again") {
    driver.exec_says = "now\n";
    REQUIRE(io.run(service.start(about<api::StartRequest>("c1", "e1"), again())));
    CHECK(comes_to("now\n"));
    driver.end("c1/e1", 0);
    CHECK(wait("c1", "e1")->exit_status() == 0);
    CHECK(comes_to("end"));
    REQUIRE(remove("c1", "e1"));
  }
  SECTION("its Start comes again and fails") {
    driver.exec_error = Error::make(Code::kUnknown, "no such program");
    CHECK_FALSE(io.run(service.start(about<api::StartRequest>("c1", "e1"), again())));
    CHECK(comes_to("end"));
    REQUIRE(remove("c1", "e1"));
  }
  SECTION("it is deleted") {
    REQUIRE(remove("c1", "e1"));
    CHECK(read_output() == "end");
  }
  CHECK(holder.size() == 0);
}

TEST_CASE_METHOD(RecoveryFixture,
                 "recovery: an exec whose start failed meanwhile ends its output") {
  hold_output("e1", false);
  auto running = record(Record::RUNNING);
  add_exec(*running, ExecRecord::STARTING);
  driver.resumed = fail(Code::kUnknown, "no such program");
  io.run(service.recover(pods.dir, running));
  SECTION("its Start comes again while that is found out") {}
  SECTION("its Start comes again later") {
    io.settle();
  }
  const auto started = io.run(service.start(about<api::StartRequest>("c1", "e1"), again()));
  CHECK(test::code_of(started) == Code::kUnknown);
  CHECK(comes_to("end"));
  REQUIRE(remove("c1", "e1"));
  CHECK(holder.size() == 0);
}

TEST_CASE_METHOD(RecoveryFixture, "recovery: what came before an exec's start is not forgotten") {
  auto running = record(Record::RUNNING);
  ExecRecord* exec = add_exec(*running, ExecRecord::CREATED);
  exec->set_stdin_closed(true);
  exec->set_width(80);
  exec->set_height(25);
  io.run(service.recover(pods.dir, running));
  auto request = about<api::ResizePtyRequest>("c1", "e1");
  CHECK_FALSE(io.run(service.resize_pty(std::move(request), context())));
  auto close = about<api::CloseIORequest>("c1", "e1");
  close.set_stdin(true);
  pods.saved.clear();
  CHECK(io.run(service.close_io(std::move(close), context())));
  CHECK(pods.saved.size() == 1);
}

TEST_CASE_METHOD(RecoveryFixture, "recovery: what is asked for again of a given up container") {
  const auto gone = record(Record::CREATED);
  std::filesystem::remove(dir / "c1");
  io.run(service.recover(pods.dir, gone));
  const auto started = io.run(service.start(about<api::StartRequest>("c1"), again()));
  CHECK(test::code_of(started) == Code::kNotFound);
  CHECK(driver.calls == std::vector<std::string>{"recover c1"});
}

TEST_CASE_METHOD(RecoveryFixture, "exec: a start that cannot be written down is refused") {
  REQUIRE(create("c1"));
  REQUIRE(start("c1"));
  auto request = about<api::ExecProcessRequest>("c1", "e1");
  request.mutable_spec()->set_type_url("types.containerd.io/opencontainers/runtime-spec/1/Process");
  request.mutable_spec()->set_value(R"({"args":["true"],"cwd":"/"})");
  REQUIRE(io.run(service.exec(request, context())));
  driver.calls.clear();
  pods.save_error = Error::make(Code::kResourceExhausted, "no space left");
  CHECK(test::code_of(start("c1", "e1")) == Code::kResourceExhausted);
  CHECK(driver.calls.empty());
  pods.save_error.reset();
  CHECK(start("c1", "e1"));
}

TEST_CASE("oci driver: an exec that ran and was reaped is not taken for one that never ran") {
  test::IoFixture io;
  os::DirectSpawner spawner;
  BlockingPool pool{1};
  FairGate gate{4, 2};
  char name[] = "/tmp/kuasar-resume-XXXXXX";
  const std::string dir = ::mkdtemp(name);
  oci::OciRuntimes runtimes(spawner, gate, oci::RuntimeConfig{"/bin/true", dir, 10s});
  os::LocalFdHolder holder;
  OciDriver driver(spawner, pool, holder, runtimes);
  auto record = std::make_shared<Record>();
  record->set_id("c1");
  record->set_phase(Record::RUNNING);
  record->set_bundle(dir);
  REQUIRE(io.run(driver.recover(dir, record)));
  const ExecPlan plan{ProcessRef{"c1", "e1"}, dir, dir + "/exec-e1.json"};
  CHECK(test::code_of(io.run(driver.resume_exec(plan))) == Code::kNotFound);

  const pid_t child = ::fork();
  if (child == 0) ::_exit(0);
  REQUIRE(::waitpid(child, nullptr, 0) == child);
  REQUIRE(write_file(dir + "/exec-e1.pid", std::to_string(child)));
  const auto resumed = io.run(driver.resume_exec(plan));
  CHECK(test::code_of(resumed) == Code::kUnknown);
  std::filesystem::remove_all(dir);
}

}  // namespace kuasar::task
