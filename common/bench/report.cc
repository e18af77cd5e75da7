#include "bench/report.h"

#include <fmt/format.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <sstream>

#include "base/files.h"
#include "base/version.h"
#include "ctl/print.h"

namespace kuasar::bench {
namespace {

constexpr double kNoFigure = -1;

std::string number(double value) {
  if (value == 0) return "0";
  return value < 10 ? fmt::format("{:.2f}", value)
                    : fmt::format("{:.{}f}", value, value < 100 ? 1 : 0);
}

std::string quantile_text(const std::vector<double>& values, double share) {
  const auto value = quantile(values, share);
  return value ? number(*value) : "";
}

// "<= 0.25x", ">= 1.8x", "<= 300 ms".
std::string limit_text(const Row& row, const std::optional<double>& limit) {
  if (!limit) return "";
  switch (row.measure) {
    case Measure::kRatio: return fmt::format("<= {:.2f}x", *limit);
    case Measure::kRate: return fmt::format(">= {:.1f}x", *limit);
    case Measure::kOurs: return fmt::format("<= {:g}", *limit);
    case Measure::kOursAtLeast: return fmt::format(">= {:g}", *limit);
    case Measure::kNone: return "";
  }
  return "";
}

std::string ratio_text(const Row& row, const Samples& samples) {
  const auto ours = quantile(samples.of(row.key, Side::kOurs), 0.5);
  const auto peer = quantile(samples.of(row.key, Side::kPeer), 0.5);
  return !is_ours_alone(row.measure) && ours && peer && *peer > 0
             ? fmt::format("{:.2f}x", *ours / *peer)
             : "";
}

// One line of /proc/cpuinfo or /proc/meminfo, behind its colon.
std::string proc_line(const char* file, const std::string& field) {
  std::istringstream lines(read_file(file).value_or(""));
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with(field)) continue;
    const std::size_t begin = line.find_first_not_of(" \t", line.find(':') + 1);
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return "unknown";
}

}  // namespace

std::optional<double> figure_of(const Row& row, const Samples& samples) {
  const auto ours = quantile(samples.of(row.key, Side::kOurs), 0.5);
  if (is_ours_alone(row.measure) || !ours) return ours;
  const auto peer = quantile(samples.of(row.key, Side::kPeer), 0.5);
  if (!peer || *peer <= 0) return std::nullopt;
  return *ours / *peer;
}

std::string table_of(const Samples& samples) {
  std::vector<std::vector<std::string>> lines;
  for (const Row& row : samples.rows()) {
    const auto& ours = samples.of(row.key, Side::kOurs);
    const auto& peer = samples.of(row.key, Side::kPeer);
    if (ours.empty() && peer.empty()) continue;
    const double figure = figure_of(row, samples).value_or(kNoFigure);
    const Verdict verdict = figure == kNoFigure ? Verdict::kNone : judge(row, figure);
    lines.push_back({std::string(row.title), std::string(row.unit), quantile_text(ours, 0.5),
                     ours.size() > 1 ? quantile_text(ours, 0.95) : "", quantile_text(peer, 0.5),
                     peer.size() > 1 ? quantile_text(peer, 0.95) : "", ratio_text(row, samples),
                     limit_text(row, row.must), limit_text(row, row.target),
                     std::string(verdict_word(verdict))});
  }
  std::string text = ctl::table(
      {"", "UNIT", "OURS", "P95", "PEER", "P95", "RATIO", "MUST", "TARGET", "VERDICT"}, lines, 120);
  for (const auto& [key, reason] : samples.skipped()) {
    text += ctl::paragraph(fmt::format("SKIPPED {}: {}", key, reason), 0);
  }
  for (const std::string& failure : samples.failures()) {
    text += ctl::paragraph("FAILED " + failure, 0);
  }
  return text;
}

std::vector<std::string> missed_of(const Samples& samples) {
  std::vector<std::string> missed;
  for (const Row& row : samples.rows()) {
    const auto figure = figure_of(row, samples);
    if (figure && judge(row, *figure) == Verdict::kMissed) missed.emplace_back(row.title);
  }
  return missed;
}

std::string describe_machine() {
  utsname names{};
  ::uname(&names);
  const bool v2 = ::access("/sys/fs/cgroup/cgroup.controllers", F_OK) == 0;
  return fmt::format(
      "kuasar      {}\nkernel      {} {}\nprocessors  {} x {}\nmemory      {}\ncgroups     {}\n",
      version(), names.release, names.machine, ::sysconf(_SC_NPROCESSORS_ONLN),
      proc_line("/proc/cpuinfo", "model name"), proc_line("/proc/meminfo", "MemTotal"),
      v2 ? "v2" : "v1");
}

}  // namespace kuasar::bench
