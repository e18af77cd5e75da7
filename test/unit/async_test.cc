#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <future>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "async/blocking_pool.h"
#include "async/event.h"
#include "async/fair_gate.h"
#include "async/gate.h"
#include "async/task_group.h"
#include "support/io_fixture.h"

namespace kuasar {
namespace {

using namespace std::chrono_literals;
using test::IoFixture;

Task<> note_when_set(const Event& event, std::string& out, char name) {
  co_await event.wait();
  out += name;
}

TEST_CASE("Event: wakes all waiters once, and later ones at once") {
  IoFixture io;
  Event event;
  std::string out;
  TaskGroup group(io.executor());
  group.spawn(note_when_set(event, out, 'a'));
  group.spawn(note_when_set(event, out, 'b'));
  io.settle();
  CHECK(out.empty());
  event.set();
  io.run(group.join());
  CHECK(out.size() == 2);
  CHECK(io.run(event.wait()));
}

TEST_CASE("Event: a timed wait ends false when nothing comes") {
  IoFixture io;
  Event event;
  CHECK_FALSE(io.run(event.wait_for(10ms)));
  event.set();
  CHECK(io.run(event.wait_for(10ms)));
}

TEST_CASE("Event: may be destroyed under its waiters") {
  IoFixture io;
  auto event = std::make_unique<Event>();
  auto other = std::make_unique<Event>();
  TaskGroup group(io.executor());
  std::string out;
  group.spawn(note_when_set(*event, out, 'a'));
  std::vector<const Event*> both = {event.get(), other.get()};
  group.spawn(Event::wait_any(std::move(both)));
  io.settle();
  event.reset();
  io.run(group.join());
  CHECK(out == "a");
}

TEST_CASE("Event: wait_any ends with the first") {
  IoFixture io;
  Event a;
  Event b;
  TaskGroup group(io.executor());
  std::vector<const Event*> both = {&a, &b};
  group.spawn(Event::wait_any(std::move(both)));
  io.settle();
  CHECK(group.size() == 1);
  b.set();
  io.run(group.join());
  CHECK_FALSE(a.is_set());
}

TEST_CASE("Event: a callback comes once, later, for the first of its events") {
  IoFixture io;
  auto a = std::make_unique<Event>();
  Event b;
  int calls = 0;
  Event::Callback callback = Event::when_any(io.executor(), {a.get(), &b}, [&calls] { ++calls; });
  io.settle();
  CHECK(calls == 0);
  SECTION("set") {
    b.set();
    CHECK(calls == 0);
    io.settle();
    CHECK(calls == 1);
    a->set();
    io.settle();
  }
  SECTION("destroyed") {
    a.reset();
    io.settle();
    CHECK(calls == 1);
    b.set();
    io.settle();
  }
  SECTION("set before") {
    b.set();
    io.settle();
    callback = Event::when_any(io.executor(), {a.get(), &b}, [&calls] { calls += 10; });
    CHECK(calls == 1);
    io.settle();
    CHECK(calls == 11);
    return;
  }
  SECTION("moved") {
    const Event::Callback other = std::move(callback);
    b.set();
    io.settle();
  }
  CHECK(calls == 1);
}

TEST_CASE("Event: a callback that is destroyed does not come, and lets go of what it holds") {
  IoFixture io;
  Event event;
  const auto held = std::make_shared<int>(0);
  const auto add = [held] { ++*held; };
  Event::Callback callback = Event::when_any(io.executor(), {&event}, add);
  Event::Callback other = Event::when_any(io.executor(), {&event}, add);
  const long before = held.use_count();
  callback = {};
  CHECK(held.use_count() == before - 1);
  event.set();
  // Under way already.
  other = {};
  io.settle();
  CHECK(*held == 0);
  // One may end another, and itself.
  Event next;
  Event::Callback first;
  Event::Callback second;
  first = Event::when_any(io.executor(), {&next}, [&] {
    ++*held;
    first = {};
    second = {};
  });
  second = Event::when_any(io.executor(), {&next}, [&] { *held += 10; });
  next.set();
  io.settle();
  CHECK(*held == 1);
}

Task<> hold(Gate& gate, Event& release, int& inside, int& most) {
  const Gate::Pass pass = co_await gate.enter();
  most = std::max(most, ++inside);
  co_await release.wait();
  --inside;
}

TEST_CASE("Gate: never more than its width, nobody is forgotten") {
  IoFixture io;
  Gate gate(2);
  Event release;
  int inside = 0;
  int most = 0;
  TaskGroup group(io.executor());
  for (int i = 0; i < 7; ++i) group.spawn(hold(gate, release, inside, most));
  io.settle();
  CHECK(inside == 2);
  CHECK(gate.waiting() == 5);
  release.set();
  io.run(group.join());
  CHECK(most == 2);
  CHECK(inside == 0);
}

Task<> pass_by(FairGate& gate, std::string key, std::string& order, Event& release) {
  const FairGate::Pass pass = co_await gate.enter(key);
  order += key;
  co_await release.wait();
}

TEST_CASE("D1: FairGate lets keys take turns and keeps one key from taking every place") {
  IoFixture io;
  FairGate gate(3, 2);
  Event release;
  std::string order;
  TaskGroup group(io.executor());
  for (int i = 0; i < 5; ++i) group.spawn(pass_by(gate, "a", order, release));
  io.settle();
  // A place is free, but not for a third of the same key.
  CHECK(order == "aa");
  CHECK(gate.waiting() == 3);
  CHECK(gate.oldest().key == "a");
  group.spawn(pass_by(gate, "b", order, release));
  io.settle();
  CHECK(order == "aab");
  for (const char* key : {"b", "c", "c"}) group.spawn(pass_by(gate, key, order, release));
  io.settle();
  CHECK(order == "aab");
  release.set();
  io.run(group.join());
  CHECK(order.size() == 9);
  // Whoever came last of all waits for no more than one round of the other keys.
  CHECK(order.find('c') <= 5);
  CHECK(gate.waiting() == 0);
  CHECK(gate.totals().passes == 9);
  CHECK(gate.totals().waited.count() > 0);
}

TEST_CASE("D1: a pass that is given back early lets the next one in") {
  IoFixture io;
  FairGate gate(1, 1);
  Event release;
  std::string order;
  FairGate::Pass pass = io.run(gate.enter("a"));
  TaskGroup group(io.executor());
  group.spawn(pass_by(gate, "b", order, release));
  io.settle();
  CHECK(order.empty());
  pass.give_back();
  io.settle();
  CHECK(order == "b");
  release.set();
  io.run(group.join());
}

TEST_CASE("D1: the pool adds threads for work that waits behind work which hangs") {
  IoFixture io;
  BlockingPool pool(2);
  std::mutex held;
  held.lock();
  TaskGroup group(io.executor());
  int ended = 0;
  const auto hang = [&]() -> Task<> {
    auto work = [&held] {
      const std::lock_guard lock(held);
      return true;
    };
    co_await pool.run(std::move(work));
    ++ended;
  };
  for (int i = 0; i < 5; ++i) group.spawn(hang());
  auto quick = [] { return 7; };
  CHECK(io.run(pool.run(std::move(quick))) == 7);
  CHECK(ended == 0);
  held.unlock();
  io.run(group.join());
  CHECK(ended == 5);
}

TEST_CASE("D5: what work of the pool throws is an error of its caller") {
  IoFixture io;
  BlockingPool pool(1);
  auto work = []() -> Result<int> { throw std::runtime_error("no thread"); };
  const Result<int> result = io.run(pool.run(std::move(work)));
  REQUIRE_FALSE(result);
  CHECK(result.error().code == Code::kInternal);
  CHECK(result.error().message == "no thread");
}

Task<> append(AsyncMutex& mutex, std::string& out, char name) {
  const AsyncMutex::Lock lock = co_await mutex.lock();
  out += name;
  co_await sleep_for(1ms);
  out += name;
}

TEST_CASE("AsyncMutex: one at a time, in order") {
  IoFixture io;
  AsyncMutex mutex;
  std::string out;
  TaskGroup group(io.executor());
  for (const char name : {'a', 'b', 'c'}) group.spawn(append(mutex, out, name));
  io.run(group.join());
  CHECK(out == "aabbcc");
}

Task<> sleep_long(bool& ended) {
  co_await sleep_for(1h);
  ended = true;
}

TEST_CASE("TaskGroup: cancel ends waits, join waits for all") {
  IoFixture io;
  TaskGroup group(io.executor());
  bool first = false;
  bool second = false;
  group.spawn(sleep_long(first));
  group.spawn(sleep_long(second));
  io.settle();
  group.cancel();
  io.run(group.join());
  CHECK(first);
  CHECK(second);
  CHECK(group.size() == 0);
}

Task<std::thread::id> where(BlockingPool& pool) {
  auto work = [] {
    std::this_thread::sleep_for(5ms);
    return std::this_thread::get_id();
  };
  co_return co_await pool.run(std::move(work));
}

TEST_CASE("BlockingPool: runs elsewhere, answers here") {
  IoFixture io;
  BlockingPool pool(2);
  CHECK(io.run(where(pool)) != std::this_thread::get_id());
}

Task<> use_pool(BlockingPool& pool, int& done) {
  auto work = [] {
    std::this_thread::sleep_for(20ms);
    return std::string(100, 'x');
  };
  const std::string text = co_await pool.run(std::move(work));
  if (text.size() == 100) ++done;
}

TEST_CASE("BlockingPool: cancellation does not cut work short") {
  IoFixture io;
  BlockingPool pool(2);
  TaskGroup group(io.executor());
  int done = 0;
  for (int i = 0; i < 4; ++i) group.spawn(use_pool(pool, done));
  io.settle();
  group.cancel();
  io.run(group.join());
  CHECK(done == 4);
}

Task<> hold_pool(BlockingPool& pool, std::shared_future<void> released) {
  auto work = [released = std::move(released)] {
    released.wait();
    return true;
  };
  co_await pool.run(std::move(work));
}

TEST_CASE("BlockingPool: work that takes long is named by the place that began it") {
  IoFixture io;
  BlockingPool pool(1);
  TaskGroup group(io.executor());
  std::promise<void> release;
  const std::shared_future<void> released = release.get_future().share();
  CHECK(pool.older_than(0s).empty());
  // The second waits for the only thread.
  for (int i = 0; i < 2; ++i) group.spawn(hold_pool(pool, released));
  io.settle();
  CHECK(pool.older_than(1h).empty());
  const auto running = pool.older_than(0s);
  REQUIRE(running.size() == 2);
  CHECK(running[0].name().starts_with("unit/async_test.cc:"));
  CHECK(running[0].since <= running[1].since);
  release.set_value();
  io.run(group.join());
  CHECK(pool.older_than(0s).empty());
}

}  // namespace
}  // namespace kuasar
