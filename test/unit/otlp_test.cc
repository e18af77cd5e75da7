#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <string>
#include <vector>

#include "otlp/exporter.h"
#include "otlp/trace.h"
#include "support/io_fixture.h"

// Calls as spans; what happens to them without a receiver.

namespace kuasar::otlp {
namespace {

using namespace std::chrono_literals;

const std::chrono::steady_clock::time_point kBegun{1000s};
const Moment kNow{kBegun + 2s, std::chrono::system_clock::time_point(5000s)};
constexpr const char* kParent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

Random counting() {
  return [next = std::uint64_t{0}]() mutable { return ++next; };
}

CallEnd call(const CallNotes* notes, Code code = Code::kOk) {
  return {"Task", "Create", code, kBegun, kBegun + 100ms, notes};
}

std::string hex(const std::string& bytes) {
  std::string text;
  for (const char c : bytes) text += fmt::format("{:02x}", static_cast<unsigned char>(c));
  return text;
}

void record(Timeline& timeline, const char* name, SpanKind kind, std::chrono::nanoseconds from,
            std::chrono::nanoseconds to) {
  timeline.end(timeline.begin(name, kind, kBegun + from), kBegun + to);
}

}  // namespace

TEST_CASE("otlp: a traceparent is taken to the letter, or not at all") {
  const auto context = parse_traceparent(kParent);
  REQUIRE(context);
  CHECK(hex(context->trace_id) == "0af7651916cd43dd8448eb211c80319c");
  CHECK(hex(context->span_id) == "b7ad6b7169203331");
  CHECK(context->sampled);
  const std::string ids = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331";
  CHECK_FALSE(parse_traceparent("00-" + ids + "-00")->sampled);
  CHECK(parse_traceparent("00-" + ids + "-03")->sampled);
  CHECK(parse_traceparent("01-" + ids + "-01-what comes later"));
  for (const std::string& wrong :
       {std::string(), std::string("00"), "00-" + ids, "00-" + ids + "-1", "00-" + ids + "-01-x",
        "00-" + ids + "-0g", "ff-" + ids + "-01", "01-" + ids + "-01x", "00-" + ids + "_01",
        std::string("00-00000000000000000000000000000000-b7ad6b7169203331-01"),
        std::string("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01"),
        std::string("00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01")}) {
    INFO(wrong);
    CHECK_FALSE(parse_traceparent(wrong));
  }
}

TEST_CASE("otlp: a call is the child of its caller's span, its steps are below it") {
  const auto timeline = std::make_shared<Timeline>(kBegun - 1s);
  record(*timeline, "an earlier call", SpanKind::kStep, -1s, -900ms);
  record(*timeline, "its step", SpanKind::kStep, -950ms, -900ms);
  record(*timeline, "Task.Create", SpanKind::kStep, 0ms, 99ms);
  record(*timeline, "attach", SpanKind::kStep, 10ms, 30ms);
  record(*timeline, "lock", SpanKind::kWait, 11ms, 20ms);
  record(*timeline, "OCI runtime", SpanKind::kWait, 40ms, 90ms);
  CallNotes notes;
  notes.traceparent = kParent;
  notes.sandbox = "s1";
  notes.container = "c1";
  notes.timeline = timeline;
  const std::vector<Span> spans = spans_of(call(&notes), kNow, counting());
  REQUIRE(spans.size() == 4);
  CHECK(spans[0].name() == "Task.Create");
  CHECK(spans[0].kind() == Span::SPAN_KIND_SERVER);
  CHECK(hex(spans[0].parent_span_id()) == "b7ad6b7169203331");
  CHECK(spans[0].start_time_unix_nano() == 4998'000'000'000);
  CHECK(spans[0].end_time_unix_nano() == 4998'100'000'000);
  CHECK(spans[0].status().code() == 0);
  REQUIRE(spans[0].attributes_size() == 5);
  CHECK(spans[0].attributes(4).key() == "kuasar.container.id");
  CHECK(spans[0].attributes(4).value().string_value() == "c1");
  CHECK(spans[1].name() == "attach");
  CHECK(spans[1].parent_span_id() == spans[0].span_id());
  CHECK(spans[2].name() == "lock");
  CHECK(spans[2].parent_span_id() == spans[1].span_id());
  REQUIRE(spans[2].attributes_size() == 1);
  CHECK(spans[2].attributes(0).value().bool_value());
  CHECK(spans[3].name() == "OCI runtime");
  CHECK(spans[3].parent_span_id() == spans[0].span_id());
  CHECK(spans[3].start_time_unix_nano() == 4998'040'000'000);
  for (const Span& span : spans) {
    CHECK(hex(span.trace_id()) == "0af7651916cd43dd8448eb211c80319c");
    CHECK(span.span_id().size() == 8);
  }
}

TEST_CASE("otlp: without a caller's trace a call has its own, an unsampled one is not told") {
  const std::vector<Span> own = spans_of(call(nullptr, Code::kNotFound), kNow, counting());
  REQUIRE(own.size() == 1);
  CHECK(own[0].trace_id().size() == 16);
  CHECK(own[0].parent_span_id().empty());
  CHECK(own[0].status().code() == opentelemetry::proto::trace::v1::Status::STATUS_CODE_ERROR);
  CHECK(own[0].status().message() == "NOT_FOUND");
  CallNotes notes;
  notes.traceparent = "garbage";
  CHECK(spans_of(call(&notes), kNow, counting())[0].parent_span_id().empty());
  notes.traceparent = std::string(kParent).substr(0, 53) + "00";
  CHECK(spans_of(call(&notes), kNow, counting()).empty());
}

TEST_CASE("otlp: where spans go is checked in words") {
  for (const char* good :
       {"off", "unix:/run/otel.sock", "localhost:4317", "[::1]:4317", "10.0.0.1:1"})
    CHECK(check_target(good));
  for (const char* wrong : {"", "on", "unix:x", "localhost", "localhost:", ":4317", "localhost:0",
                            "localhost:65536", "http://localhost:4317", "localhost:4317/"}) {
    INFO(wrong);
    const Result<> checked = check_target(wrong);
    REQUIRE_FALSE(checked);
    CHECK(checked.error().message.starts_with("must be \"off\", \"unix:/path\" or \"host:port\""));
  }
}

TEST_CASE("otlp: without a receiver nothing waits, the queue has a bound, and the end is soon") {
  test::IoFixture io;
  Exporter::Options options;
  options.target = "unix:/nowhere/otel.sock";
  options.name = "test";
  options.version = "1";
  options.interval = 10ms;
  options.timeout = 200ms;
  options.queue_limit = 3;
  Exporter exporter(io.executor(), std::move(options));
  for (int i = 0; i < 5; ++i) exporter.call_ended(call(nullptr));
  CHECK(exporter.dropped() == 2);
  const auto wait = [](Exporter& sender) -> Task<> {
    for (int i = 0; i < 500 && sender.dropped() < 5; ++i) co_await sleep_for(10ms);
  };
  TaskGroup group(io.executor());
  group.spawn(exporter.run());
  io.run(wait(exporter));
  CHECK(exporter.dropped() == 5);
  CHECK(exporter.sent() == 0);
  const auto begun = std::chrono::steady_clock::now();
  exporter.call_ended(call(nullptr));
  exporter.stop();
  io.run(group.join());
  CHECK(std::chrono::steady_clock::now() - begun < 3s);
  CHECK(exporter.dropped() == 6);
}

}  // namespace kuasar::otlp
