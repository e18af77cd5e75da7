#pragma once

#include <array>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bench/rows.h"

namespace kuasar::bench {

/// Everything that was measured, by row and side, in the order of time; and what failed.
class Samples {
 public:
  /// Of these rows; others are kept, and shown nowhere.
  explicit Samples(const Rows& rows = all_rows()) : rows_(&rows) {}

  const Rows& rows() const { return *rows_; }
  void add(std::string_view row, Side side, double value);
  void add_failure(std::string words) { failures_.push_back(std::move(words)); }
  /// A row that could not be measured, and why.
  void skip(std::string_view row, std::string reason);

  const std::vector<double>& of(std::string_view row, Side side) const;
  const std::vector<std::string>& failures() const { return failures_; }
  const std::map<std::string, std::string, std::less<>>& skipped() const { return skipped_; }

  /// JSON Lines: {"row":"run_pod","unit":"ms","side":"ours","n":0,"value":5.2}.
  std::string jsonl() const;

 private:
  const Rows* rows_;
  std::map<std::string, std::array<std::vector<double>, 2>, std::less<>> values_;
  std::map<std::string, std::string, std::less<>> skipped_;
  std::vector<std::string> failures_;
};

/// The value below which `share` (0 to 1) of the values lie, interpolated between neighbours;
/// absent when there is none.
std::optional<double> quantile(std::vector<double> values, double share);

}  // namespace kuasar::bench
