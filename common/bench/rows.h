#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace kuasar::bench {

/// The two sides of a comparison: a sandboxer of ours, and containerd's own way.
enum class Side { kOurs = 0, kPeer = 1 };

/// What a limit of a row is compared with.
enum class Measure {
  /// Our median divided by the peer's, at most.
  kRatio,
  /// The same for what should be high (rates), at least.
  kRate,
  /// Our median itself, at most, in the row's unit.
  kOurs,
  /// The same, at least.
  kOursAtLeast,
  /// Nothing: shown for the reader.
  kNone,
};

/// One line of the table: what is measured, and what the design promises of it.
struct Row {
  std::string_view key;
  std::string_view title;
  std::string_view unit;
  Measure measure = Measure::kNone;
  std::optional<double> must;
  std::optional<double> target;
};

/// The rows of a benchmark, in the order of its table; they live as long as the program.
using Rows = std::vector<Row>;
/// Those of kuasar-bench.
const Rows& all_rows();

enum class Verdict {
  kTarget,
  kMust,
  kMissed,
  /// Nothing is promised, or there is nothing to compare with.
  kNone,
};

/// The figure is to be high.
bool wants_more(Measure measure);
/// It is our median, whatever the peer has.
bool is_ours_alone(Measure measure);

/// Judges a row by its figure (the ratio, or our median). Pure.
Verdict judge(const Row& row, double figure);
std::string_view verdict_word(Verdict verdict);

}  // namespace kuasar::bench
