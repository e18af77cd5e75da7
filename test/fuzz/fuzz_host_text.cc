// Texts that others write and we parse: /proc/PID/cgroup, mountinfo, control files, logs of OCI
// runtimes and of criu.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "oci/runtime_log.h"
#include "os/cgroup.h"
#include "os/cgroup_files.h"

namespace {

void must(bool truth) {
  if (!truth) std::abort();
}

bool is_one_printable_line(std::string_view words) {
  for (const char c : words) {
    if (c < ' ' || c > '~') return false;
  }
  return true;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace kuasar;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto memberships = os::parse_proc_cgroup(text);
  const auto hierarchies = os::parse_cgroup_mounts(text);
  // Where a hierarchy is mounted is the kernel's word; what is joined to it leads nowhere else.
  for (const std::string& dir : os::join_cgroups(hierarchies, memberships)) {
    must(std::any_of(hierarchies.begin(), hierarchies.end(), [&](const auto& hierarchy) {
      return dir.starts_with(hierarchy.mount_point) &&
             dir.find("/..", hierarchy.mount_point.size()) == std::string::npos;
    }));
  }
  (void)os::parse_control_number(text);
  (void)os::keyed_value(text, "oom_kill");
  (void)os::expand_slice(std::string(text));
  (void)oci::last_error_message(text);
  must(is_one_printable_line(oci::last_words(text)));
  must(is_one_printable_line(oci::first_criu_error(text)));
  return 0;
}
