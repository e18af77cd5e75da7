#pragma once

#include <linux/filter.h>

#include <vector>

namespace kuasar::wasm {

/// What a child may do beyond files, clocks and memory that is not executable.
struct FilterOptions {
  /// Threads, and memory that is executable and not writable: an engine that compiles.
  bool compiles = false;
  /// Memory that is executable and not writable, and another filter above this one: while code of
  /// our own cache is loaded.
  bool loads_code = false;
  /// All that the zygote of a module does, and its children until they have a filter of their own.
  bool serves = false;
};

/// The filter of system calls of a child that runs a module (seccomp(2)): files, clocks and memory,
/// else ENOSYS; EPERM for arguments that are not allowed. Another architecture's calls end the
/// process. Pure.
std::vector<sock_filter> build_filter(FilterOptions options);

}  // namespace kuasar::wasm
