#include <fmt/format.h>
#include <signal.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <string>
#include <vector>

#include "containerd/cgroups/v1/metrics.pb.h"
#include "containerd/cgroups/v2/metrics.pb.h"
#include "containerd/task/v3/task.pb.h"
#include "e2e/redelivery_row.h"
#include "os/spawn.h"
#include "task/convert.h"

namespace kuasar::test {
namespace {

namespace task = containerd::task::v3;

std::string create(const Subject& subject) {
  return subject.create.SerializeAsString();
}

std::string usr1(const Subject& subject) {
  auto request = request_for<task::KillRequest>(subject);
  request.set_signal(SIGUSR1);
  return request.SerializeAsString();
}

std::string close_stdin(const Subject& subject) {
  auto request = request_for<task::CloseIORequest>(subject);
  request.set_stdin(true);
  return request.SerializeAsString();
}

std::string resize(const Subject& subject) {
  auto request = request_for<task::ResizePtyRequest>(subject);
  request.set_width(132);
  request.set_height(43);
  return request.SerializeAsString();
}

std::string fewer_shares(const Subject& subject) {
  auto request = request_for<task::UpdateTaskRequest>(subject);
  request.mutable_resources()->set_type_url(
      "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources");
  request.mutable_resources()->set_value(R"({"cpu":{"shares":512}})");
  return request.SerializeAsString();
}

std::string checkpoint(const Subject& subject) {
  auto request = request_for<task::CheckpointTaskRequest>(subject);
  request.set_path(Bench::image_dir(subject));
  return request.SerializeAsString();
}

// The daemon's own figures of an idle container but for what grows from call to call.
std::string idle_figures(const google::protobuf::Message& answer) {
  const auto& stats = dynamic_cast<const task::StatsResponse&>(answer).stats();
  io::containerd::cgroups::v1::Metrics v1;
  if (kuasar::task::unpack_any(stats, v1)) {
    return fmt::format("v1: {} of {} processes, memory {} of {}, CPU time {}", v1.pids().current(),
                       v1.pids().limit(), v1.memory().usage().usage() > 0,
                       v1.memory().usage().limit(), v1.cpu().usage().total() > 0);
  }
  io::containerd::cgroups::v2::Metrics v2;
  if (!kuasar::task::unpack_any(stats, v2)) return "of another type: " + stats.type_url();
  return fmt::format("v2: {} of {} processes, memory {} of {}, CPU time {}", v2.pids().current(),
                     v2.pids().limit(), v2.memory().usage() > 0, v2.memory().usage_limit(),
                     v2.cpu().usage_usec() > 0);
}

std::vector<Row> rows() {
  using google::protobuf::Empty;
  return {
      {.name = "Create",
       .method = "Create",
       .payload = create,
       .answer = answer<task::CreateTaskResponse>(),
       .container = Stage::kNone,
       .fresh = true,
       .verb = "create",
       .half_done = Effect::kNo},
      {.name = "Start",
       .method = "Start",
       .payload = plainly<task::StartRequest>,
       .answer = answer<task::StartResponse>(),
       .container = Stage::kCreated,
       .says = "ran",
       .fresh = true,
       .verb = "start",
       .half_done = Effect::kEither},
      {.name = "Start of an exec",
       .method = "Start",
       .payload = plainly<task::StartRequest>,
       .answer = answer<task::StartResponse>(),
       .exec = Stage::kCreated,
       .says = "exec ran",
       .verb = "exec",
       .half_done = Effect::kYes},
      {.name = "Exec",
       .method = "Exec",
       .payload = Bench::exec_request,
       .answer = answer<Empty>(),
       .exec = Stage::kNone},
      {.name = "State",
       .method = "State",
       .payload = plainly<task::StateRequest>,
       .answer = answer<task::StateResponse>()},
      {.name = "Wait for one that has ended",
       .method = "Wait",
       .payload = plainly<task::WaitRequest>,
       .answer = answer<task::WaitResponse>(),
       .container = Stage::kStopped},
      {.name = "Wait for one that runs",
       .method = "Wait",
       .payload = plainly<task::WaitRequest>,
       .answer = answer<task::WaitResponse>(),
       .fresh = true,
       .ends_meanwhile = true},
      {.name = "Kill",
       .method = "Kill",
       .payload = usr1,
       .answer = answer<Empty>(),
       .says = "usr1"},
      {.name = "Kill of an exec",
       .method = "Kill",
       .payload = usr1,
       .answer = answer<Empty>(),
       .exec = Stage::kRunning,
       .says = "exec usr1"},
      {.name = "Pids",
       .method = "Pids",
       .payload = plainly<task::PidsRequest>,
       .answer = answer<task::PidsResponse>()},
      {.name = "Connect",
       .method = "Connect",
       .payload = plainly<task::ConnectRequest>,
       .answer = answer<task::ConnectResponse>()},
      {.name = "Stats",
       .method = "Stats",
       .payload = plainly<task::StatsRequest>,
       .answer = answer<task::StatsResponse>(),
       .in_common = idle_figures},
      {.name = "Pause",
       .method = "Pause",
       .payload = plainly<task::PauseRequest>,
       .answer = answer<Empty>(),
       .fresh = true,
       .points = {"cgroup.freezing", "task.Pause.frozen"},
       .half_done = Effect::kYes},
      {.name = "Resume",
       .method = "Resume",
       .payload = plainly<task::ResumeRequest>,
       .answer = answer<Empty>(),
       .container = Stage::kPaused,
       .fresh = true,
       .points = {"task.Resume.thawed"},
       .half_done = Effect::kYes},
      {.name = "Update", .method = "Update", .payload = fewer_shares, .answer = answer<Empty>()},
      {.name = "CloseIO",
       .method = "CloseIO",
       .payload = close_stdin,
       .answer = answer<Empty>(),
       .says = "eof",
       .fresh = true,
       .reads_stdin = true},
      {.name = "ResizePty",
       .method = "ResizePty",
       .payload = resize,
       .answer = answer<Empty>(),
       .exec = Stage::kRunning,
       .says = "exec size 43 132",
       .terminal = true},
      {.name = "Delete",
       .method = "Delete",
       .payload = plainly<task::DeleteRequest>,
       .answer = answer<task::DeleteResponse>(),
       .container = Stage::kStopped,
       .fresh = true,
       .verb = "delete",
       .half_done = Effect::kEither},
      {.name = "Delete of an exec",
       .method = "Delete",
       .payload = plainly<task::DeleteRequest>,
       .answer = answer<task::DeleteResponse>(),
       .exec = Stage::kStopped},
      {.name = "Shutdown",
       .method = "Shutdown",
       .payload = plainly<task::ShutdownRequest>,
       .answer = answer<Empty>()},
  };
}

}  // namespace

TEST_CASE("redelivery: the daemon dies in each Task call, and the caller does not notice",
          "[root][e2e][hostile][redelivery]") {
  Bench bench;
  if (!bench.daemon().has_failpoints()) SKIP("the sandboxer was built without failpoints");
  for (const Row& row : rows()) run_row(bench, row);
  CHECK(bench.leftovers() == "");
}

TEST_CASE("redelivery: the daemon dies in a Checkpoint: the image, or criu's words why not",
          "[root][e2e][hostile][redelivery]") {
  Bench bench;
  if (!bench.daemon().has_failpoints()) SKIP("the sandboxer was built without failpoints");
  const bool has_criu = os::find_program("criu").has_value();
  const Row row = {.name = "Checkpoint",
                   .method = "Checkpoint",
                   .payload = checkpoint,
                   .answer = answer<google::protobuf::Empty>(),
                   .fresh = true,
                   .may_be_refused = true,
                   .verb = has_criu ? "checkpoint" : nullptr,
                   .half_done = Effect::kYes};
  const std::string refusal = run_row(bench, row);
  CHECK(bench.leftovers() == "");
  if (refusal.empty()) return;
  CHECK_THAT(refusal, Catch::Matchers::ContainsSubstring("criu"));
  SKIP("refused here, each time in the same words: " << refusal);
}

}  // namespace kuasar::test
