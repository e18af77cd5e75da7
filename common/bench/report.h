#pragma once

#include <optional>
#include <string>
#include <vector>

#include "bench/samples.h"

namespace kuasar::bench {

/// What a row comes to: the ratio of the medians, or our median; absent without samples.
std::optional<double> figure_of(const Row& row, const Samples& samples);

/// The table for people, at most 100 columns wide: medians, 95th percentiles, ratio, limits and
/// verdict of every row that was measured, then what was not measured and why, then failures.
std::string table_of(const Samples& samples);

/// The cumulative distributions of the rows that both sides have several samples of, as an SVG
/// document of its own: one panel a row, our side and the peer's in it.
std::string svg_of(const Samples& samples);

/// Rows whose "must" is missed, by title. With none of them and no failure a run is a success.
std::vector<std::string> missed_of(const Samples& samples);

/// The machine and the programs that were measured, one fact a line: kernel, CPUs, memory, cgroups,
/// versions.
std::string describe_machine();

}  // namespace kuasar::bench
