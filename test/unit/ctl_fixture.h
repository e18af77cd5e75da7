#pragma once

#include <unistd.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <filesystem>
#include <memory>
#include <string>

#include "daemon/ctl_service.h"
#include "kuasar/ctl/v1/ctl.pb.h"
#include "support/wait.h"
#include "ttrpc/client.h"
#include "unit/task_fixture.h"

namespace kuasar::test {

namespace ctlapi = ::kuasar::ctl::v1;

inline constexpr const char* kCtlService = "kuasar.ctl.v1.Ctl";

/// FAKE: no pod is ever made here.
class NoPods : public sandbox::SandboxFactory {
 public:
  Result<> check(const state::v1::SandboxState&) const override { return {}; }
  std::unique_ptr<sandbox::Sandbox> make(const state::v1::SandboxState&) override {
    return nullptr;
  }
};

/// A CtlService over a TaskService with one running container, c1 of pod p1.
struct CtlFixture : TaskFixture {
  sandbox::StateStore store = opened(dir / "daemon");
  NoPods factory;
  sandbox::SandboxManager manager{io.executor(), pool, store, factory};
  daemon::CtlService ctl{io.executor(),
                         {pool, store, manager, service, [](ctlapi::HealthResponse& health) {
                            health.set_name("test-sandboxer");
                            health.set_pid(::getpid());
                          }}};

  CtlFixture() {
    REQUIRE(create("c1"));
    REQUIRE(start("c1"));
    std::filesystem::create_directories(store.paths().container("p1", "c1"));
    REQUIRE(
        write_file(store.paths().config_json("p1", "c1"),
                   R"({"ociVersion":"1.2.0","process":{"args":["init"],"env":["A=b"],)"
                   R"("cwd":"/","user":{"uid":7,"gid":7},"consoleSize":{"height":1,"width":2}},)"
                   R"("root":{"path":"r"},"linux":{}})"));
  }
  ~CtlFixture() { stop(); }

  static sandbox::StateStore opened(const std::filesystem::path& path) {
    Result<sandbox::StateStore> opened = sandbox::StateStore::open(path);
    INFO((opened ? std::string() : opened.error().message));
    REQUIRE(opened);
    return std::move(*opened);
  }
  void begin() { REQUIRE(ctl.begin()); }
  void stop() { io.run(ctl.stop()); }

  std::unique_ptr<ttrpc::Client> client() {
    auto client =
        io.run(ttrpc::Client::connect(store.paths().ctl_socket(), std::chrono::seconds(1)));
    REQUIRE(client);
    return std::move(*client);
  }
  template <typename Response>
  Result<Response> call(ttrpc::Client& client, const char* method,
                        const google::protobuf::MessageLite& request) {
    return io.run(client.call<Response>(kCtlService, method, request, std::chrono::seconds(5)));
  }
  Result<ctlapi::StartExecResponse> start_exec(ttrpc::Client& client, const std::string& id) {
    ctlapi::StartExecRequest request;
    request.set_id(id);
    request.set_container("c1");
    request.add_args("true");
    return call<ctlapi::StartExecResponse>(client, "StartExec", request);
  }
  ctlapi::WaitExecRequest wait_request(const std::string& id) const {
    ctlapi::WaitExecRequest request;
    request.set_id(id);
    request.set_container("c1");
    return request;
  }
  bool called(const std::string& what) const {
    return std::find(driver.calls.begin(), driver.calls.end(), what) != driver.calls.end();
  }
  /// Drives the service until the condition holds.
  template <typename Condition>
  bool eventually(Condition condition) {
    return wait_until(
        [&] {
          io.settle();
          return condition();
        },
        std::chrono::seconds(10));
  }
  std::size_t execs() {
    const auto records = service.records();
    return records.empty() ? 0 : static_cast<std::size_t>(records[0].execs_size());
  }
};

}  // namespace kuasar::test
