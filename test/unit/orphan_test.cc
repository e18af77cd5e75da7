#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "sandbox/orphan_collector.h"
#include "support/io_fixture.h"

// T20: which sandboxes are taken for forgotten by containerd, and when.

namespace kuasar::sandbox {
namespace {

using namespace std::chrono_literals;
using Ids = std::vector<std::string>;

constexpr auto kGrace = 60ms;

/// FAKE: a containerd that knows what the test says, or does not answer.
class FakeStore : public SandboxStore {
 public:
  std::set<std::string> known;
  bool away = false;
  int asked = 0;

  Task<Result<std::set<std::string>>> list() override {
    ++asked;
    if (away) co_return fail(Code::kUnavailable, "connection refused");
    co_return known;
  }
  void cancel() override {}
};

/// FAKE sandboxes.
class FakeSuspects : public Suspects {
 public:
  Ids suspected;
  Ids removed;
  std::set<std::string> vouched;

  Ids suspects(std::chrono::nanoseconds) const override { return suspected; }
  void vouch(const std::set<std::string>& known) override { vouched = known; }
  Task<Result<>> shutdown(std::string id) override {
    removed.push_back(id);
    co_return Result<>();
  }
};

struct OrphanFixture {
  test::IoFixture io;
  FakeStore store;
  FakeSuspects suspects;
  OrphanCollector collector{suspects, store, kGrace};

  void look() { io.run(collector.look()); }
  // The grace is what is tested here: it has to pass.
  static void let_grace_pass() { std::this_thread::sleep_for(kGrace + 10ms); }
};

}  // namespace

TEST_CASE_METHOD(OrphanFixture, "T20 orphans: absent twice, a grace apart, and only then") {
  suspects.suspected = {"lost", "kept"};
  store.known = {"kept", "another kind's"};
  look();
  look();
  CHECK(suspects.removed.empty());
  CHECK(suspects.vouched == store.known);
  let_grace_pass();
  look();
  CHECK(suspects.removed == Ids{"lost"});
}

TEST_CASE_METHOD(OrphanFixture, "T20 orphans: known again in between: the doubt begins anew") {
  suspects.suspected = {"a"};
  look();
  store.known = {"a"};
  look();
  store.known = {};
  let_grace_pass();
  look();
  CHECK(suspects.removed.empty());
  let_grace_pass();
  look();
  CHECK(suspects.removed == Ids{"a"});
}

TEST_CASE_METHOD(OrphanFixture, "T20 orphans: nothing is changed while containerd is away") {
  suspects.suspected = {"a"};
  store.away = true;
  look();
  let_grace_pass();
  look();
  CHECK(suspects.removed.empty());
  // Its silence counts for nothing.
  store.away = false;
  look();
  CHECK(suspects.removed.empty());
  let_grace_pass();
  look();
  CHECK(suspects.removed == Ids{"a"});
}

TEST_CASE_METHOD(OrphanFixture, "T20 orphans: containerd is asked about suspects only") {
  look();
  CHECK(store.asked == 0);
}

TEST_CASE_METHOD(OrphanFixture, "T20 orphans: the watch ends when it is told to") {
  TaskGroup group(io.executor());
  suspects.suspected = {"a"};
  group.spawn(collector.run());
  io.settle();
  CHECK(store.asked == 1);
  collector.stop();
  io.run(group.join());
}

}  // namespace kuasar::sandbox
