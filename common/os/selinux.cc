#include "os/selinux.h"

#include <sys/vfs.h>
#include <sys/xattr.h>

#include "base/files.h"

namespace kuasar::os {
namespace {

// SELINUX_MAGIC (include/uapi/linux/magic.h)
constexpr unsigned long kSelinuxMagic = 0xf97cff8c;
// A page: what the kernel's attribute files hold at most.
constexpr std::size_t kMaxContext = 4096;
constexpr const char* kAttribute = "security.selinux";

bool nothing_to_do(const std::string& label) {
  return label.empty() || !selinux_enabled();
}

}  // namespace

bool selinux_enabled() {
  struct statfs st {};
  if (::statfs("/sys/fs/selinux", &st) != 0 ||
      static_cast<unsigned long>(st.f_type) != kSelinuxMagic) {
    return false;
  }
  const Result<std::string> context = read_file("/proc/self/attr/current", kMaxContext);
  return context && is_policys_context(*context);
}

bool is_policys_context(std::string_view context) {
  context = context.substr(0, context.find_first_of(std::string_view("\0\n", 2)));
  return !context.empty() && context != "kernel";
}

// The value ends with its NUL byte, as libselinux writes it.
Result<> set_selinux_label(int fd, const std::string& label) {
  if (nothing_to_do(label)) return {};
  if (::fsetxattr(fd, kAttribute, label.c_str(), label.size() + 1, 0) == 0) return {};
  return fail_errno("set the SELinux label", label);
}

Result<> set_selinux_label(const std::string& path, const std::string& label) {
  if (nothing_to_do(label)) return {};
  if (::lsetxattr(path.c_str(), kAttribute, label.c_str(), label.size() + 1, 0) == 0) return {};
  return fail_errno("set the SELinux label", fmt::format("{} of {}", label, path));
}

}  // namespace kuasar::os
