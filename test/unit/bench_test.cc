#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <set>

#include "bench/args.h"
#include "bench/cri_client.h"
#include "bench/report.h"
#include "bench/rows.h"
#include "bench/samples.h"

namespace kuasar::bench {
namespace {

using Catch::Matchers::ContainsSubstring;

const Row& row_of(std::string_view key) {
  for (const Row& row : all_rows()) {
    if (row.key == key) return row;
  }
  FAIL("no row " << key);
  return all_rows().front();
}

void add_all(Samples& samples, std::string_view row, Side side, std::vector<double> values) {
  for (const double value : values) samples.add(row, side, value);
}

TEST_CASE("bench: a quantile lies between its neighbours") {
  CHECK(quantile({}, 0.5) == std::nullopt);
  CHECK(quantile({7}, 0.95) == 7);
  CHECK(quantile({3, 1, 2}, 0.5) == 2);
  CHECK(quantile({4, 1, 3, 2}, 0.5) == 2.5);
  CHECK(quantile({0, 100}, 0.95) == 95);
}

TEST_CASE("bench: rows have keys of their own, and a target is no easier than the must") {
  std::set<std::string_view> keys;
  for (const Row& row : all_rows()) {
    CAPTURE(row.key);
    CHECK(keys.insert(row.key).second);
    CHECK((row.measure == Measure::kNone) == (!row.must && !row.target));
    if (!row.must || !row.target) continue;
    CHECK((wants_more(row.measure) ? *row.target >= *row.must : *row.target <= *row.must));
  }
}

TEST_CASE("bench: a row is judged by its kind") {
  const Row ratio{"a", "", "ms", Measure::kRatio, 0.6, 0.4};
  CHECK(judge(ratio, 0.4) == Verdict::kTarget);
  CHECK(judge(ratio, 0.5) == Verdict::kMust);
  CHECK(judge(ratio, 0.61) == Verdict::kMissed);
  const Row rate{"b", "", "/s", Measure::kRate, 1.8, 2.5};
  CHECK(judge(rate, 2.5) == Verdict::kTarget);
  CHECK(judge(rate, 1.79) == Verdict::kMissed);
  const Row zero{"c", "", "", Measure::kOurs, 0.0, 0.0};
  CHECK(judge(zero, 0) == Verdict::kTarget);
  CHECK(judge(zero, 1) == Verdict::kMissed);
  const Row starts{"s", "", "/s", Measure::kOursAtLeast, 300.0, 500.0};
  CHECK(judge(starts, 500) == Verdict::kTarget);
  CHECK(judge(starts, 299) == Verdict::kMissed);
  // A target alone is a wish.
  const Row wish{"d", "", "KiB", Measure::kOurs, std::nullopt, 64.0};
  CHECK(judge(wish, 65) == Verdict::kNone);
  CHECK(judge(Row{"e", "", "ms", Measure::kNone, {}, {}}, 9) == Verdict::kNone);
}

TEST_CASE("bench: the figure of a row is the ratio of medians, or our median") {
  Samples samples;
  add_all(samples, "run_pod", Side::kOurs, {10, 20, 90});
  CHECK(figure_of(row_of("run_pod"), samples) == std::nullopt);
  add_all(samples, "run_pod", Side::kPeer, {100, 100, 1});
  CHECK(figure_of(row_of("run_pod"), samples) == 0.2);
  add_all(samples, "memory_50", Side::kOurs, {5.5});
  CHECK(figure_of(row_of("memory_50"), samples) == 5.5);
  CHECK(missed_of(samples) == std::vector<std::string>{"memory at 50 pods: private dirty"});
}

TEST_CASE("bench: a benchmark may have rows of its own") {
  static const Rows rows = {{"starts", "starts", "/s", Measure::kOursAtLeast, 300.0, 500.0}};
  Samples samples(rows);
  add_all(samples, "starts", Side::kOurs, {400});
  add_all(samples, "run_pod", Side::kOurs, {1});
  const std::string table = table_of(samples);
  CHECK_THAT(table, ContainsSubstring(">= 300"));
  CHECK(table.find("RunPodSandbox") == std::string::npos);
  CHECK(samples.jsonl().find("run_pod") == std::string::npos);
  CHECK(missed_of(samples).empty());
}

TEST_CASE("bench: the table shows figures, verdicts, what was left out and what failed") {
  Samples samples;
  add_all(samples, "run_pod", Side::kOurs, {10, 10});
  add_all(samples, "run_pod", Side::kPeer, {100, 100});
  samples.skip("cpu_exec", "no cgroup");
  samples.add_failure("StopPodSandbox: gone");
  const std::string table = table_of(samples);
  CHECK_THAT(table, ContainsSubstring("0.10x"));
  CHECK_THAT(table, ContainsSubstring("target met"));
  CHECK_THAT(table, ContainsSubstring("SKIPPED cpu_exec: no cgroup"));
  CHECK_THAT(table, ContainsSubstring("FAILED StopPodSandbox: gone"));
  CHECK(table.find("StartContainer") == std::string::npos);
}

TEST_CASE("bench: samples as JSON Lines, and distributions as SVG") {
  Samples samples;
  add_all(samples, "exec", Side::kOurs, {1.5, 2, 3, 4});
  CHECK(svg_of(samples).find("<g ") == std::string::npos);
  add_all(samples, "exec", Side::kPeer, {2, 3, 4, 5});
  CHECK_THAT(samples.jsonl(),
             ContainsSubstring(R"({"row":"exec","unit":"ms","side":"ours","n":0,"value":1.5})"));
  const std::string svg = svg_of(samples);
  CHECK_THAT(svg, ContainsSubstring("<svg xmlns="));
  CHECK_THAT(svg, ContainsSubstring("ExecSync (ms)"));
  CHECK(svg.find("polyline", svg.find("polyline") + 1) != std::string::npos);
}

TEST_CASE("bench: the command line") {
  const auto args = parse_args({"--image", "b:1", "--rounds=3", "--kill", "--out", "/r"});
  REQUIRE(args);
  CHECK(args->options.image == "b:1");
  CHECK(args->options.rounds == 3);
  CHECK(args->options.kill);
  CHECK(args->out == "/r");
  const auto words = [](const std::vector<std::string>& arguments) {
    const auto parsed = parse_args(arguments);
    return parsed ? "" : parsed.error().message;
  };
  CHECK_THAT(words({"--imge", "x"}), ContainsSubstring("did you mean --image?"));
  CHECK_THAT(words({"--rounds", "0"}), ContainsSubstring("from 1 to 1000"));
  CHECK_THAT(words({"--rounds", "2x"}), ContainsSubstring("not a number"));
  CHECK_THAT(words({"--image"}), ContainsSubstring("needs a value"));
  CHECK_THAT(words({"--kill=yes"}), ContainsSubstring("takes no value"));
  CHECK_THAT(words({"image"}), ContainsSubstring("unknown flag"));
  CHECK(parse_args({"--help", "--nonsense"})->action == Args::Action::kHelp);
}

TEST_CASE("bench: the time of a log's first entry") {
  using std::chrono::duration_cast;
  const auto nanoseconds = [](const std::string& text) {
    const auto time = first_log_time(text);
    REQUIRE(time);
    return duration_cast<std::chrono::nanoseconds>(time->time_since_epoch()).count();
  };
  CHECK(nanoseconds("1970-01-01T00:00:01.5Z stdout F x\n") == 1'500'000'000);
  CHECK(nanoseconds("1970-01-01T01:30:01.25+01:30 stdout F x\n") == 1'250'000'000);
  CHECK(nanoseconds("1969-12-31T23:00:02-01:00 stdout F x\n") == 2'000'000'000);
  CHECK(!first_log_time(""));
  CHECK(!first_log_time("stdout F x\n"));
}

}  // namespace
}  // namespace kuasar::bench
