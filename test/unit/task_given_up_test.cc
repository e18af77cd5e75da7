#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <filesystem>
#include <memory>

#include "async/task_group.h"
#include "kuasar/state/v1/state.pb.h"
#include "os/pidfd.h"
#include "unit/task_fixture.h"

// Which containers a daemon that has come back takes for given up by containerd (T21).

namespace kuasar::task {
namespace {

using namespace std::chrono_literals;
using test::about;
using test::code_of;
using Record = state::v1::ContainerState;

constexpr std::uint64_t kConnection = 7;
constexpr auto kPatience = 50ms;

/// A container that runs, of a daemon that has died; this process is the containerd that had made
/// the connection.
struct GivenUpFixture : test::TaskFixture {
  TaskGroup group{io.executor()};
  std::shared_ptr<ttrpc::Peer> connection = std::make_shared<ttrpc::Peer>(kConnection);

  ~GivenUpFixture() {
    io.run(service.stop());
    io.run(group.join());
  }
  std::shared_ptr<Record> record() const {
    std::filesystem::create_directory(dir / "c1");
    auto record = std::make_shared<Record>();
    record->set_id("c1");
    record->set_sandbox_id("p1");
    record->set_phase(Record::RUNNING);
    record->set_bundle((dir / "c1").native());
    record->mutable_init()->set_pid(10);
    record->mutable_connection()->set_id(kConnection);
    record->mutable_connection()->mutable_peer()->set_pid(::getpid());
    record->mutable_connection()->mutable_peer()->set_start_time(
        os::process_start_time(::getpid()).value());
    return record;
  }
  void recover(const std::shared_ptr<Record>& record, const HeldConnections& held) {
    io.run(service.recover(pods.dir, record));
    service.connections_are_back(held);
    group.spawn(service.sweep(kPatience));
  }
  state::v1::Connection recorded() const { return service.records().at(0).connection(); }
  bool there() const { return service.containers_of("p1").size() == 1; }
  bool stays() {
    io.run(sleep_for(4 * kPatience + 100ms));
    return there();
  }
  bool goes() {
    for (int i = 0; i < 500 && there(); ++i) io.run(sleep_for(10ms));
    return !there();
  }
};

}  // namespace

TEST_CASE_METHOD(GivenUpFixture, "T21: lost with the keeper, and containerd lives: given up") {
  recover(record(), {});
  CHECK(there());
  CHECK(goes());
  CHECK(sink.topics.back() == "/tasks/delete");
}

TEST_CASE_METHOD(GivenUpFixture, "T21: lost with the keeper and its bundle: given up at once") {
  const auto lost = record();
  lost->clear_connection();
  std::filesystem::remove_all(dir / "c1");
  recover(lost, {});
  CHECK(goes());
}

TEST_CASE_METHOD(GivenUpFixture, "T21: what containerd may still connect to stays") {
  const auto lost = record();
  SECTION("it was restarted: the pid is another's") {
    lost->mutable_connection()->mutable_peer()->set_start_time(1);
    recover(lost, {});
  }
  SECTION("it is not known which containerd it was") {
    lost->mutable_connection()->clear_peer();
    recover(lost, {});
  }
  SECTION("it has closed the connection itself, as one does that ends") {
    recover(lost, {{kConnection, nullptr}});
  }
  SECTION("the connection is there, and nothing was asked yet") {
    recover(lost, {{kConnection, connection}});
  }
  SECTION("a record of a version that did not write the connection down") {
    lost->clear_connection();
    recover(lost, {});
  }
  SECTION("it comes back in time") {
    recover(lost, {});
    CHECK(io.run(service.connect(about<api::ConnectRequest>("c1"), context())));
    CHECK(recorded().id() == peer->id());
  }
  CHECK(stays());
}

TEST_CASE_METHOD(GivenUpFixture, "T21: a connection that closes later is no sign by itself") {
  recover(record(), {{kConnection, connection}});
  connection->closed_event().set();
  CHECK(stays());
  std::filesystem::remove_all(dir / "c1");
  CHECK(goes());
}

TEST_CASE_METHOD(GivenUpFixture, "task: the record names containerd's connection of now") {
  REQUIRE(create("c1"));
  CHECK(recorded().id() == peer->id());
  CHECK_FALSE(recorded().has_peer());
  const std::size_t saved = pods.saved.size();
  ttrpc::CallContext context = this->context();
  context.peer = std::make_shared<ttrpc::Peer>(9, ttrpc::PeerProcess{12, 34});
  REQUIRE(io.run(service.connect(about<api::ConnectRequest>("c1"), context)));
  REQUIRE(io.run(service.connect(about<api::ConnectRequest>("c1"), context)));
  CHECK(pods.saved.size() == saved + 1);
  CHECK(recorded().id() == 9);
  CHECK(recorded().peer().pid() == 12);
  CHECK(recorded().peer().start_time() == 34);
}

}  // namespace kuasar::task
