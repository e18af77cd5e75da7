#pragma once

#include <linux/filter.h>

#include <vector>

namespace kuasar::wasm {

/// The filter of system calls of a child that runs a module (seccomp(2)): files, clocks and memory,
/// else ENOSYS; EPERM for arguments that are not allowed. Another architecture's calls end the
/// process. An engine that compiles may also have threads and make memory executable that is not
/// writable. Pure.
std::vector<sock_filter> build_filter(bool compiles = false);

}  // namespace kuasar::wasm
