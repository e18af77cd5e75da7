#pragma once

#include <google/protobuf/empty.pb.h>

#include <catch2/catch_test_macros.hpp>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>

#include "base/files.h"
#include "containerd/task/v3/task.pb.h"
#include "os/local_fd_holder.h"
#include "support/fake_driver.h"
#include "support/io_fixture.h"
#include "task/task_service.h"

namespace kuasar::test {

inline constexpr const char* kSpec =
    R"({"ociVersion":"1.2.0","root":{"path":"rootfs"},"linux":{}})";

template <typename Request>
Request about(const std::string& id, const std::string& exec = "") {
  Request request;
  request.set_id(id);
  if constexpr (requires { request.set_exec_id(exec); }) request.set_exec_id(exec);
  return request;
}

/// What a session of ttrpc does with a call that waits.
template <typename T>
Task<Result<T>> answer_of(Result<ttrpc::Awaited<T>> awaited) {
  if (!awaited) co_return fail(awaited.error());
  std::vector<const Event*> events = awaited->events;
  co_await Event::wait_any(std::move(events));
  co_return awaited->answer();
}

/// The same of one that does not.
template <typename T>
Task<Result<T>> answer_of(Task<Result<T>> answer) {
  return answer;
}

/// A TaskService over fakes, and bundles in a temporary directory.
struct TaskFixture {
  IoFixture io;
  BlockingPool pool{1};
  FakeDriver driver;
  FakePods pods;
  RecordingSink sink;
  os::LocalFdHolder holder;
  task::TaskService service{io.executor(), pool, driver, pods, sink, holder, "/tmp"};
  std::filesystem::path dir;
  std::shared_ptr<ttrpc::Peer> peer = std::make_shared<ttrpc::Peer>(1);

  TaskFixture() {
    char name[] = "/tmp/kuasar-task-XXXXXX";
    dir = ::mkdtemp(name);
    std::filesystem::create_directory(dir / "state");
    pods.dir = (dir / "state").native();
  }
  ~TaskFixture() {
    peer->closed_event().set();
    io.run(service.stop());
    std::filesystem::remove_all(dir);
  }

  ttrpc::CallContext context() {
    ttrpc::CallContext context;
    context.peer = peer;
    return context;
  }
  task::api::CreateTaskRequest create_request(const std::string& id,
                                              const std::string& sandbox = "p1") {
    const std::filesystem::path bundle = dir / id;
    std::filesystem::create_directories(bundle / "rootfs");
    REQUIRE(write_file(bundle / "config.json", kSpec));
    REQUIRE(write_file(bundle / "sandbox", sandbox));
    task::api::CreateTaskRequest request;
    request.set_id(id);
    request.set_bundle(bundle.native());
    return request;
  }
  Result<task::api::CreateTaskResponse> create(const std::string& id,
                                               const std::string& pod = "p1") {
    return io.run(service.create(create_request(id, pod), context()));
  }
  Result<task::api::StartResponse> start(const std::string& id, const std::string& exec = "") {
    return io.run(service.start(about<task::api::StartRequest>(id, exec), context()));
  }
  Result<task::api::StateResponse> state(const std::string& id, const std::string& exec = "") {
    return io.run(service.state(about<task::api::StateRequest>(id, exec), context()));
  }
  Result<task::api::WaitResponse> wait(const std::string& id, const std::string& exec = "") {
    return io.run(answer_of(service.wait(about<task::api::WaitRequest>(id, exec), context())));
  }
  Result<task::api::DeleteResponse> remove(const std::string& id, const std::string& exec = "") {
    return io.run(service.remove(about<task::api::DeleteRequest>(id, exec), context()));
  }
  Result<google::protobuf::Empty> kill(const std::string& id, std::uint32_t signal,
                                       bool all = false, const std::string& exec = "") {
    auto request = about<task::api::KillRequest>(id, exec);
    request.set_signal(signal);
    request.set_all(all);
    return io.run(service.kill(std::move(request), context()));
  }
};

template <typename T>
Code code_of(const Result<T>& result) {
  return result ? Code::kOk : result.error().code;
}

}  // namespace kuasar::test
