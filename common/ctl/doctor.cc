#include "ctl/doctor.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>

#include "ctl/print.h"

namespace kuasar::ctl {
namespace {

namespace json = boost::json;

const char* word_of(Finding::Level level) {
  switch (level) {
    case Finding::Level::kOk: return "ok";
    case Finding::Level::kWarn: return "warn";
    case Finding::Level::kFail: return "fail";
  }
  return "";
}

}  // namespace

std::filesystem::path Probe::at(std::string_view absolute) const {
  while (absolute.starts_with('/')) absolute.remove_prefix(1);
  return root / absolute;
}

std::string Probe::find(const std::string& name, std::string_view path) const {
  while (!path.empty()) {
    const std::size_t colon = std::min(path.find(':'), path.size());
    const std::string candidate = fmt::format("{}/{}", path.substr(0, colon), name);
    path.remove_prefix(std::min(colon + 1, path.size()));
    struct stat st {};
    if (!candidate.starts_with('/') || ::stat(at(candidate).c_str(), &st) != 0) continue;
    constexpr mode_t kAnyExecute = 0111;
    if (S_ISREG(st.st_mode) && (st.st_mode & kAnyExecute) != 0) return candidate;
  }
  return "";
}

std::string report_text(const std::vector<Finding>& findings) {
  constexpr std::size_t kIndent = 6;
  std::string out;
  for (const Finding& finding : findings) {
    std::string text = paragraph(fmt::format("{}: {}", finding.check, finding.words), kIndent);
    std::string level = word_of(finding.level);
    for (char& c : level) c = static_cast<char>(c - 'a' + 'A');
    text.replace(0, level.size(), level);
    out += text;
    if (!finding.remedy.empty()) out += paragraph("-> " + finding.remedy, kIndent);
  }
  const auto count = [&](Finding::Level level) {
    return std::count_if(findings.begin(), findings.end(),
                         [level](const Finding& one) { return one.level == level; });
  };
  return out + fmt::format("{} ok, {} warnings, {} failures\n", count(Finding::Level::kOk),
                           count(Finding::Level::kWarn), count(Finding::Level::kFail));
}

json::value report_json(const std::vector<Finding>& findings) {
  json::array all;
  for (const Finding& finding : findings) {
    all.push_back(json::object{{"level", word_of(finding.level)},
                               {"check", finding.check},
                               {"words", finding.words},
                               {"remedy", finding.remedy}});
  }
  return json::object{{"findings", std::move(all)}};
}

bool any_failed(const std::vector<Finding>& findings) {
  return std::any_of(findings.begin(), findings.end(),
                     [](const Finding& one) { return one.level == Finding::Level::kFail; });
}

}  // namespace kuasar::ctl
