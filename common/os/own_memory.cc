#include "os/own_memory.h"

#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>

namespace kuasar::os {
namespace {

struct Mapping {
  std::uintptr_t begin = 0;
  std::uintptr_t end = 0;
  bool constant = false;
};

// "7f2e4c000000-7f2e4c021000 r-xp 00000000 fe:00 1234 /usr/lib/libc.so.6"; what follows a mapping's
// line begins with a name and a colon (proc(5), /proc/PID/smaps).
std::optional<Mapping> mapping_of(const std::string& line) {
  std::istringstream words(line);
  Mapping mapping;
  std::string mode;
  std::string skipped;
  std::uint64_t inode = 0;
  char dash = 0;
  words >> std::hex >> mapping.begin >> dash >> mapping.end;
  if (!words || dash != '-') return std::nullopt;
  words >> mode >> skipped >> skipped >> std::dec >> inode;
  mapping.constant =
      words && inode != 0 && mode.size() == 4 && mode[0] == 'r' && mode[1] == '-' && mode[3] == 'p';
  return mapping;
}

bool says_none(const std::string& line, std::string_view field) {
  return line.starts_with(field) && line.find_first_not_of(' ', field.size()) == line.find("0 kB");
}

}  // namespace

void forbid_core_dumps() {
  ::prctl(PR_SET_DUMPABLE, 0);
}

Result<> release_file_pages() {
  std::ifstream smaps("/proc/self/smaps");
  if (!smaps) return fail_errno("open", "/proc/self/smaps");
  Mapping mapping;
  for (std::string line; std::getline(smaps, line);) {
    if (const std::optional<Mapping> next = mapping_of(line)) {
      mapping = *next;
      continue;
    }
    if (says_none(line, "Rss:")) mapping.constant = false;
    if (!mapping.constant || !says_none(line, "Anonymous:")) continue;
    // NOLINTNEXTLINE(performance-no-int-to-ptr): an address in words
    void* const begin = reinterpret_cast<void*>(mapping.begin);
    if (::madvise(begin, mapping.end - mapping.begin, MADV_DONTNEED) != 0) {
      return fail_errno("madvise", line);
    }
  }
  return {};
}

ResidentBytes resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  std::size_t size = 0;
  std::size_t resident = 0;
  std::size_t shared = 0;
  statm >> size >> resident >> shared;
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  return {shared * page, (resident - std::min(shared, resident)) * page};
}

}  // namespace kuasar::os
