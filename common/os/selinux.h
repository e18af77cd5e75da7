#pragma once

#include <string>
#include <string_view>

#include "base/error.h"

namespace kuasar::os {

/// Whether the kernel enforces or logs by an SELinux policy: selinuxfs is mounted (selinux(8)) and
/// a policy is loaded.
bool selinux_enabled();

/// Whether a process with this context (/proc/self/attr/current) lives under a policy: before one
/// is loaded every process is "kernel".
bool is_policys_context(std::string_view context);

/// Gives the file of a descriptor a label (xattr security.selinux). An empty label, or a host
/// without SELinux: nothing is done.
Result<> set_selinux_label(int fd, const std::string& label);
/// The same by path; a link is not followed.
Result<> set_selinux_label(const std::string& path, const std::string& label);

}  // namespace kuasar::os
