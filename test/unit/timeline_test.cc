#include "base/timeline.h"

#include <boost/json/serialize.hpp>
#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "async/blocking_pool.h"
#include "ctl/timing.h"
#include "kuasar/ctl/v1/ctl.pb.h"
#include "support/io_fixture.h"

namespace kuasar {
namespace {

using namespace std::chrono_literals;

const Timeline::Clock::time_point kOrigin{1000s};

std::vector<std::string> in_words(const Timeline& timeline) {
  std::vector<std::string> words;
  for (const Timeline::Entry& entry : timeline.entries()) {
    words.push_back(std::string(static_cast<std::size_t>(entry.depth), ' ') +
                    (entry.kind == SpanKind::kWait ? "wait " : "") + entry.name + " " +
                    std::to_string(entry.begin / 1us) + ".." +
                    (entry.end == Timeline::kUnderWay ? "-1" : std::to_string(entry.end / 1us)));
  }
  return words;
}

void record(Timeline& timeline, const char* name, long from, long to,
            SpanKind kind = SpanKind::kStep) {
  const std::size_t index = timeline.begin(name, kind, kOrigin + std::chrono::microseconds(from));
  if (to >= 0) timeline.end(index, kOrigin + std::chrono::microseconds(to));
}

ctl::v1::Timeline::Span span(const std::string& name, std::int64_t from, std::int64_t to,
                             std::uint32_t depth, bool wait) {
  ctl::v1::Timeline::Span span;
  span.set_name(name);
  span.set_begin_ns(from);
  span.set_end_ns(to);
  span.set_depth(depth);
  span.set_wait(wait);
  return span;
}

}  // namespace

TEST_CASE("timeline: a span lies in what was begun before it and ended after it") {
  Timeline timeline(kOrigin);
  record(timeline, "create", 0, 100);
  record(timeline, "lock", 0, 10, SpanKind::kWait);
  record(timeline, "files", 10, 50);
  record(timeline, "shm", 20, 50);
  record(timeline, "start", 200, -1);
  record(timeline, "pins", 210, -1);
  CHECK(in_words(timeline) == std::vector<std::string>{"create 0..100", " wait lock 0..10",
                                                       " files 10..50", "  shm 20..50",
                                                       "start 200..-1", " pins 210..-1"});
  CHECK(timeline.dropped() == 0);
}

TEST_CASE("timeline: what finds no room is counted, and ends without harm") {
  Timeline timeline(kOrigin);
  for (std::size_t i = 0; i < Timeline::kCapacity + 3; ++i) record(timeline, "x", 1, 2);
  CHECK(timeline.entries().size() == Timeline::kCapacity);
  CHECK(timeline.dropped() == 3);
}

TEST_CASE("timeline: a span ends once, moved or not, and without a timeline is nothing") {
  const auto timeline = std::make_shared<Timeline>();
  {
    Span first(timeline, "first");
    Span moved(std::move(first));
    first.end();
    CHECK(timeline->entries()[0].end == Timeline::kUnderWay);
    moved.end();
    const auto end = timeline->entries()[0].end;
    CHECK(end >= 0ns);
    moved.end();
    CHECK(timeline->entries()[0].end == end);
    Span none(nullptr, "none");
  }
  CHECK(timeline->entries().size() == 1);
}

TEST_CASE("timeline: several threads record and read at once") {
  const auto timeline = std::make_shared<Timeline>();
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([timeline] {
      for (int n = 0; n < 8; ++n) {
        const Span span(timeline, "work");
        (void)timeline->entries();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const auto entries = timeline->entries();
  CHECK(entries.size() == 32);
  for (const Timeline::Entry& entry : entries) CHECK(entry.end >= entry.begin);
}

TEST_CASE("timeline: work of the pool has its wait for a thread beside it") {
  test::IoFixture io;
  BlockingPool pool;
  const auto timeline = std::make_shared<Timeline>();
  auto work = [] { return 7; };
  CHECK(io.run(pool.run(std::move(work), timeline, "work")) == 7);
  const auto entries = timeline->entries();
  REQUIRE(entries.size() == 2);
  CHECK(entries[0].name == std::string("thread"));
  CHECK(entries[0].kind == SpanKind::kWait);
  CHECK(entries[1].name == std::string("work"));
  CHECK(entries[1].begin >= entries[0].end);
  CHECK(entries[1].end >= entries[1].begin);
}

// A start of some 150 ms has about 40 spans in pod and container: 1% of it would be 37 us each.
TEST_CASE("timeline: a span costs next to nothing") {
  constexpr int kTimes = 10'000;
  const auto timeline = std::make_shared<Timeline>();
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < kTimes; ++i) const Span span(timeline, "x");
  const auto each = (std::chrono::steady_clock::now() - begin) / kTimes;
  INFO(each.count() << " ns per span");
  CHECK(each < 5us);
  CHECK(sizeof(Timeline) <= 1200);
}

TEST_CASE("ctl: a pod's timing shows steps, waits, and what containerd did between its calls") {
  ctl::v1::Pod pod;
  pod.mutable_state()->set_id("0123456789abcdef");
  pod.mutable_state()->mutable_config()->mutable_metadata()->set_name("web");
  pod.mutable_state()->mutable_config()->mutable_metadata()->set_namespace_("default");
  pod.mutable_timeline()->mutable_begun_at()->set_seconds(100);
  *pod.mutable_timeline()->add_spans() = span("Controller.Create", 0, 1'000'000, 0, false);
  *pod.mutable_timeline()->add_spans() = span("lock", 0, 500'000, 1, true);
  *pod.mutable_timeline()->add_spans() = span("Controller.Start", 3'000'000, -1, 0, false);
  ctl::v1::Container* container = pod.add_containers();
  container->set_name("nginx");
  container->mutable_state()->set_id("c1");
  container->mutable_timeline()->mutable_begun_at()->set_seconds(100);
  container->mutable_timeline()->mutable_begun_at()->set_nanos(7'000'000);
  container->mutable_timeline()->set_dropped(2);
  pod.add_containers()->set_name("old");

  const std::string text = ctl::timing_text(pod);
  INFO(text);
  CHECK(text.starts_with("pod default/web (0123456789abc)\n"));
  CHECK(text.find("    0.000      0.500    wait: lock") != std::string::npos);
  CHECK(text.find("    1.000      2.000  wait: containerd") != std::string::npos);
  CHECK(text.find("    3.000  under way  Controller.Start") != std::string::npos);
  CHECK(text.find("container nginx (c1), 7.0 ms after the pod") != std::string::npos);
  CHECK(text.find("and 2 spans more") != std::string::npos);
  CHECK(text.find("container old (): no timeline, an earlier daemon started it") !=
        std::string::npos);

  const boost::json::value json = ctl::timing_json(pod);
  CHECK(json.at("pod") == "0123456789abcdef");
  const auto& spans = json.at("timelines").at(0).at("spans").as_array();
  REQUIRE(spans.size() == 4);
  CHECK(spans[2].at("name") == "containerd");
  CHECK(spans[2].at("took_ms").as_double() == 2.0);
  CHECK_FALSE(spans[3].as_object().contains("took_ms"));
}

}  // namespace kuasar
