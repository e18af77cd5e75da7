#pragma once

#include <filesystem>
#include <string>

#include "base/error.h"
#include "bench/bench.h"
#include "bench/samples.h"

namespace kuasar::bench {

/// Writes samples.jsonl, cdf.svg and table.txt (`table`) below `out`, made if need be, and says so.
Result<> write_results(const std::filesystem::path& out, const std::string& table,
                       const Samples& samples);
/// Says which promises are missed and how much has failed; 0, or 1 when there is any.
int conclude(const Samples& samples);

/// Measures, prints progress, the machine and the table, and writes samples.jsonl, cdf.svg and
/// table.txt below `out` (made if need be; empty: nothing is written). Returns the exit status: 0,
/// or 1 when an operation failed or a "must" is missed.
Result<int> run_and_report(Options options, const std::filesystem::path& out);

}  // namespace kuasar::bench
