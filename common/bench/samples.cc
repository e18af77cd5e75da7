#include "bench/samples.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace kuasar::bench {

void Samples::add(std::string_view row, Side side, double value) {
  values_[std::string(row)][static_cast<std::size_t>(side)].push_back(value);
}

void Samples::skip(std::string_view row, std::string reason) {
  skipped_[std::string(row)] = std::move(reason);
}

const std::vector<double>& Samples::of(std::string_view row, Side side) const {
  static const std::vector<double> none;
  const auto found = values_.find(row);
  return found == values_.end() ? none : found->second[static_cast<std::size_t>(side)];
}

std::string Samples::jsonl() const {
  std::string text;
  for (const Row& row : rows()) {
    for (const Side side : {Side::kOurs, Side::kPeer}) {
      std::size_t n = 0;
      for (const double value : of(row.key, side)) {
        text += fmt::format(R"({{"row":"{}","unit":"{}","side":"{}","n":{},"value":{:.6g}}})",
                            row.key, row.unit, side == Side::kOurs ? "ours" : "peer", n++, value) +
                "\n";
      }
    }
  }
  return text;
}

std::optional<double> quantile(std::vector<double> values, double share) {
  if (values.empty()) return std::nullopt;
  std::sort(values.begin(), values.end());
  const double at = share * static_cast<double>(values.size() - 1);
  const auto low = static_cast<std::size_t>(std::floor(at));
  const std::size_t high = std::min(low + 1, values.size() - 1);
  return values[low] + (values[high] - values[low]) * (at - static_cast<double>(low));
}

}  // namespace kuasar::bench
