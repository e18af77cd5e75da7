#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <vector>

#include "bench/report.h"

namespace kuasar::bench {
namespace {

constexpr double kPanelWidth = 380;
constexpr double kPanelHeight = 210;
constexpr double kPlotLeft = 40;
constexpr double kPlotTop = 34;
constexpr double kPlotWidth = 320;
constexpr double kPlotHeight = 140;
constexpr std::size_t kColumns = 2;
constexpr std::size_t kFewestSamples = 4;
constexpr const char* kOurColour = "#1a7f37";
constexpr const char* kPeerColour = "#b3261e";

// The steps of one distribution: from (first value, 0) up by 1/n at each value.
std::string steps(std::vector<double> values, double longest, const char* colour) {
  std::sort(values.begin(), values.end());
  std::string points;
  const auto x = [&](double value) { return kPlotLeft + kPlotWidth * value / longest; };
  const auto y = [&](std::size_t count) {
    return kPlotTop + kPlotHeight -
           kPlotHeight * static_cast<double>(count) / static_cast<double>(values.size());
  };
  for (std::size_t i = 0; i < values.size(); ++i) {
    points +=
        fmt::format("{:.1f},{:.1f} {:.1f},{:.1f} ", x(values[i]), y(i), x(values[i]), y(i + 1));
  }
  return fmt::format("<polyline fill=\"none\" stroke=\"{}\" stroke-width=\"2\" points=\"{}\"/>\n",
                     colour, points);
}

std::string label(double x, double y, const std::string& anchor, const std::string& words,
                  const char* colour = "#222") {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\" fill=\"{}\">{}</text>\n",
                     x, y, anchor, colour, words);
}

std::string panel(const Row& row, const std::vector<double>& ours,
                  const std::vector<double>& peer) {
  const double longest = 1.05 * std::max(*std::max_element(ours.begin(), ours.end()),
                                         *std::max_element(peer.begin(), peer.end()));
  const double bottom = kPlotTop + kPlotHeight;
  std::string text = label(kPlotLeft, 16, "start", fmt::format("{} ({})", row.title, row.unit));
  text += label(kPlotLeft, 29, "start", "ours", kOurColour);
  text += label(kPlotLeft + 40, 29, "start", "peer", kPeerColour);
  text += fmt::format(
      "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"none\" stroke=\"#999\"/>\n",
      kPlotLeft, kPlotTop, kPlotWidth, kPlotHeight);
  text += label(kPlotLeft - 6, kPlotTop + 8, "end", "1");
  text += label(kPlotLeft - 6, bottom, "end", "0");
  text += label(kPlotLeft, bottom + 16, "middle", "0");
  text += label(kPlotLeft + kPlotWidth, bottom + 16, "end", fmt::format("{:.3g}", longest));
  return text + steps(ours, longest, kOurColour) + steps(peer, longest, kPeerColour);
}

}  // namespace

std::string svg_of(const Samples& samples) {
  std::string panels;
  std::size_t count = 0;
  for (const Row& row : samples.rows()) {
    const auto& ours = samples.of(row.key, Side::kOurs);
    const auto& peer = samples.of(row.key, Side::kPeer);
    if (ours.size() < kFewestSamples || peer.size() < kFewestSamples) continue;
    panels +=
        fmt::format("<g transform=\"translate({},{})\">\n{}</g>\n",
                    static_cast<double>(count % kColumns) * kPanelWidth,
                    static_cast<double>(count / kColumns) * kPanelHeight, panel(row, ours, peer));
    ++count;
  }
  const std::size_t lines = (count + kColumns - 1) / kColumns;
  return fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" "
      "font-family=\"sans-serif\" font-size=\"12\">\n"
      "<rect width=\"{0}\" height=\"{1}\" fill=\"#fff\"/>\n{2}</svg>\n",
      kPanelWidth * kColumns, kPanelHeight * static_cast<double>(lines), panels);
}

}  // namespace kuasar::bench
