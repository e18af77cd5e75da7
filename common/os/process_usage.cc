#include "os/process_usage.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <sstream>
#include <string>

#include "base/files.h"

namespace kuasar::os {
namespace {

Result<std::string> proc_file(pid_t pid, const char* name) {
  auto text = read_file(fmt::format("/proc/{}/{}", pid, name));
  // A process that ends while its file is read.
  if (!text && text.error().err == ESRCH) text.error().code = Code::kNotFound;
  return text;
}

// The number behind "<field>" at the beginning of a line.
std::uint64_t field_of(const std::string& text, const std::string& field) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with(field)) return std::strtoull(line.c_str() + field.size(), nullptr, 10);
  }
  return 0;
}

}  // namespace

MemoryUse& MemoryUse::operator+=(const MemoryUse& other) {
  rss += other.rss;
  pss += other.pss;
  private_dirty += other.private_dirty;
  anonymous += other.anonymous;
  return *this;
}

Result<MemoryUse> memory_of(pid_t pid) {
  TRY(const std::string text, proc_file(pid, "smaps_rollup"));
  const auto bytes = [&](const char* field) { return field_of(text, field) * 1024; };
  return MemoryUse{bytes("Rss:"), bytes("Pss:"), bytes("Private_Dirty:"), bytes("Anonymous:")};
}

Result<double> cpu_seconds_of(pid_t pid) {
  TRY(const std::string text, proc_file(pid, "stat"));
  // The name may hold blanks and parentheses; nothing behind it does.
  std::istringstream fields(text.substr(std::min(text.rfind(')') + 1, text.size())));
  std::string skipped;
  for (int field = 3; field < 14; ++field) fields >> skipped;
  double user = 0;
  double system = 0;
  fields >> user >> system;
  return (user + system) / static_cast<double>(::sysconf(_SC_CLK_TCK));
}

Result<double> thread_seconds_of(pid_t pid) {
  const std::filesystem::path tasks = fmt::format("/proc/{}/task", pid);
  std::error_code ec;
  double nanoseconds = 0;
  for (std::filesystem::directory_iterator entry(tasks, ec), end; !ec && entry != end;
       entry.increment(ec)) {
    // A thread that has just ended has none.
    std::istringstream fields(read_file(entry->path() / "schedstat").value_or(""));
    double running = 0;
    if (fields >> running) nanoseconds += running;
  }
  if (ec) return fail(Error::from_errno_value(ec.value(), "read", tasks.native()));
  return nanoseconds / 1e9;
}

Result<unsigned> threads_of(pid_t pid) {
  TRY(const std::string text, proc_file(pid, "status"));
  return static_cast<unsigned>(field_of(text, "Threads:"));
}

std::vector<pid_t> all_pids() {
  std::vector<pid_t> pids;
  std::error_code ec;
  for (std::filesystem::directory_iterator entry("/proc", ec), end; !ec && entry != end;
       entry.increment(ec)) {
    const std::string name = entry->path().filename();
    if (name.find_first_not_of("0123456789") == std::string::npos) pids.push_back(std::stoi(name));
  }
  std::sort(pids.begin(), pids.end());
  return pids;
}

}  // namespace kuasar::os
