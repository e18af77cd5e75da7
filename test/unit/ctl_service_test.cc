// The daemon's side of kuasar-ctl over its socket; containers are fakes.

#include <catch2/catch_test_macros.hpp>
#include <filesystem>
#include <string>

#include "unit/ctl_fixture.h"

namespace kuasar::test {

namespace fs = std::filesystem;

TEST_CASE("ctl service: health counts, and names what cannot be explained") {
  CtlFixture f;
  fs::create_directories(f.store.paths().sandboxes() / "p1");
  REQUIRE(write_file(f.store.paths().sandboxes() / "odd", ""));
  f.begin();
  const auto client = f.client();
  const auto health = f.call<ctlapi::HealthResponse>(*client, "Health", ctlapi::HealthRequest());
  REQUIRE(health);
  CHECK(health->name() == "test-sandboxer");
  CHECK(health->containers() == 1);
  CHECK(health->execs() == 0);
  REQUIRE(health->unexplained_size() == 1);
  CHECK(health->unexplained(0) == (f.store.paths().sandboxes() / "odd").native());
  CHECK(f.call<ctlapi::ListResponse>(*client, "List", ctlapi::ListRequest()));
  ctlapi::InspectRequest unknown;
  unknown.set_id("nobody");
  CHECK(code_of(f.call<ctlapi::InspectResponse>(*client, "Inspect", unknown)) == Code::kNotFound);
  unknown.set_id("../p1");
  CHECK(code_of(f.call<ctlapi::InspectResponse>(*client, "Inspect", unknown)) ==
        Code::kInvalidArgument);
}

TEST_CASE("ctl service: an exec ends with its exit code and goes with its connection") {
  CtlFixture f;
  f.begin();
  auto client = f.client();
  CHECK(code_of(f.start_exec(*client, "e1")) == Code::kInvalidArgument);
  CHECK(code_of(f.start_exec(*client, "ctl-" + std::string(61, 'x'))) == Code::kInvalidArgument);
  const auto started = f.start_exec(*client, "ctl-1");
  REQUIRE(started);
  CHECK(started->pid() == 4343);
  CHECK(f.execs() == 1);
  f.driver.end("c1/ctl-1", 7);
  const auto ended = f.call<ctlapi::WaitExecResponse>(*client, "WaitExec", f.wait_request("ctl-1"));
  REQUIRE(ended);
  CHECK(ended->exit_status() == 7);
  CHECK(f.execs() == 1);
  client.reset();
  CHECK(f.eventually([&] { return f.execs() == 0; }));
  CHECK_FALSE(f.called("signal c1/ctl-1 9"));
}

TEST_CASE("ctl service: an exec whose client goes away is killed, and its FIFOs go") {
  CtlFixture f;
  f.begin();
  auto client = f.client();
  fs::create_directory(f.store.paths().ctl_exec("ctl-2"));
  REQUIRE(f.start_exec(*client, "ctl-2"));
  client.reset();
  CHECK(f.eventually(
      [&] { return f.execs() == 0 && !fs::exists(f.store.paths().ctl_exec("ctl-2")); }));
  CHECK(f.called("signal c1/ctl-2 9"));
}

TEST_CASE("ctl service: an exec that cannot start says why") {
  CtlFixture f;
  f.begin();
  const auto client = f.client();
  f.driver.exec_error = Error::make(Code::kUnknown, "no such program");
  const auto refused = f.start_exec(*client, "ctl-3");
  REQUIRE_FALSE(refused);
  CHECK(refused.error().message.find("no such program") != std::string::npos);
  ctlapi::StartExecRequest request;
  request.set_id("ctl-4");
  request.set_container("c2");
  CHECK(code_of(f.call<ctlapi::StartExecResponse>(*client, "StartExec", request)) ==
        Code::kNotFound);
}

TEST_CASE("ctl service: its end is the end of what it runs, and a client is told") {
  CtlFixture f;
  f.begin();
  const auto client = f.client();
  REQUIRE(f.start_exec(*client, "ctl-5"));
  Result<ctlapi::WaitExecResponse> ended = ctlapi::WaitExecResponse();
  bool answered = false;
  const auto wait = [&](ttrpc::Client& c) -> Task<> {
    const ctlapi::WaitExecRequest request = f.wait_request("ctl-5");
    ended = co_await c.call<ctlapi::WaitExecResponse>(kCtlService, "WaitExec", request,
                                                      std::chrono::seconds(10));
    answered = true;
  };
  spawn_root(f.io.executor(), wait(*client));
  f.io.settle();
  f.stop();
  CHECK(f.execs() == 0);
  CHECK(f.eventually([&] { return answered; }));
  CHECK(code_of(ended) == Code::kUnavailable);
}

TEST_CASE("ctl service: what an earlier daemon left is ended at the start") {
  CtlFixture f;
  for (const std::string id : {"ctl-old", "other"}) {
    task::api::ExecProcessRequest request;
    request.set_id("c1");
    request.set_exec_id(id);
    request.mutable_spec()->set_type_url(
        "types.containerd.io/opencontainers/runtime-spec/1/Process");
    request.mutable_spec()->set_value(R"({"args":["a"],"cwd":"/"})");
    REQUIRE(f.io.run(f.service.exec(std::move(request), f.context())));
    REQUIRE(f.start("c1", id));
  }
  fs::create_directories(f.store.paths().ctl_exec("ctl-old"));
  f.begin();
  CHECK_FALSE(fs::exists(f.store.paths().ctl_exec("ctl-old")));
  CHECK(f.eventually([&] { return f.execs() == 1; }));
  CHECK(f.called("signal c1/ctl-old 9"));
  CHECK_FALSE(f.called("signal c1/other 9"));
}

}  // namespace kuasar::test
