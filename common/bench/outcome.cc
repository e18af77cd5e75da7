#include "bench/outcome.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <stdlib.h>

#include <cstdio>

#include "base/files.h"
#include "base/rollback.h"
#include "bench/pods.h"
#include "bench/report.h"

namespace kuasar::bench {

namespace fs = std::filesystem;

Result<> write_results(const fs::path& out, const std::string& table, const Samples& samples) {
  std::error_code ec;
  fs::create_directories(out, ec);
  if (ec) return fail(Error::from_errno_value(ec.value(), "mkdir", out.native()));
  CHECK_OK(write_file(out / "table.txt", table, 0644));
  CHECK_OK(write_file(out / "samples.jsonl", samples.jsonl(), 0644));
  CHECK_OK(write_file(out / "cdf.svg", svg_of(samples), 0644));
  fmt::print("\nwritten to {}: table.txt, samples.jsonl, cdf.svg\n", out.native());
  return {};
}

int conclude(const Samples& samples) {
  const std::vector<std::string> missed = missed_of(samples);
  if (!missed.empty()) fmt::print("MISSED      {}\n", fmt::join(missed, "; "));
  if (!samples.failures().empty()) {
    fmt::print("FAILED      {} operations: this run is no result\n", samples.failures().size());
  }
  return missed.empty() && samples.failures().empty() ? 0 : 1;
}

Result<int> run_and_report(Options options, const fs::path& out) {
  std::string scratch = (fs::temp_directory_path() / "kuasar-bench.XXXXXX").native();
  if (::mkdtemp(scratch.data()) == nullptr) return fail_errno("mkdtemp", scratch);
  options.scratch = scratch;
  auto phase_begun = Clock::now();
  options.progress = [&](const std::string& phase, const std::string& words) {
    const std::chrono::duration<double> took = Clock::now() - phase_begun;
    fmt::print("{:<12} {:<76.76} {:>8.1f}s\n", phase, words, took.count());
    std::fflush(stdout);
    phase_begun = Clock::now();
  };
  const auto measured = measure(options);
  std::error_code ec;
  fs::remove_all(scratch, ec);
  TRY(const Samples samples, measured);

  const std::string table =
      fmt::format("\n{}containerd  {}\nours        handler {}\npeer        handler {}\n\n{}",
                  describe_machine(), options.containerd.native(), options.handler, options.peer,
                  table_of(samples));
  fmt::print("{}", table);
  if (!out.empty()) {
    CHECK_OK(write_results(out, table, samples));
  }
  return conclude(samples);
}

}  // namespace kuasar::bench
