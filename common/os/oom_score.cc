#include "os/oom_score.h"

#include <fmt/format.h>

#include <charconv>
#include <string>
#include <system_error>

#include "os/cgroup_files.h"

namespace kuasar::os {
namespace {

Result<int> read_score(const std::string& path) {
  TRY(const std::string text, read_control(path));
  int score = 0;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), score);
  if (parsed.ec != std::errc{}) return fail(Code::kInternal, "{} holds \"{}\"", path, text);
  return score;
}

}  // namespace

Result<int> oom_score_adj_of(pid_t pid) {
  return read_score(fmt::format("/proc/{}/oom_score_adj", pid));
}

Result<int> lowest_oom_score_adj() {
  constexpr int kLowest = -1000;
  const std::string path = "/proc/self/oom_score_adj";
  TRY(const int own, read_score(path));
  if (own == kLowest) return kLowest;
  const Result<> lowered = write_control(path, std::to_string(kLowest));
  if (!lowered) {
    if (lowered.error().err == EACCES || lowered.error().err == EPERM) return own;
    return fail(lowered.error());
  }
  CHECK_OK(write_control(path, std::to_string(own)));
  return kLowest;
}

}  // namespace kuasar::os
