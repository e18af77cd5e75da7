#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "worker/plan.h"
#include "worker/seccomp.h"

// What a child does to itself before it looks at a byte of an image. Each step ends the process
// when it fails (child.h, refuse()).

namespace kuasar::wasm {

/// Where a zygote's children mount their root.
inline constexpr char kRootMount[] = "/root";

/// The directories of the zygote's own, empty root.
void enter_empty_root();

struct Confinement {
  const Plan& plan;
  const std::vector<int>& fds;
  int control;

  /// Or waits until others have done it. `in_unified`: it was born in that of v2.
  void enter_cgroups(bool in_unified) const;
  void join_namespaces() const;
  /// Moves the mounts into the new root and makes that the only one.
  void build_root() const;
  void set_limits() const;
  /// The container's user, without any capability but these (a bit each) and any way to one.
  void drop_privileges(std::uint64_t kept = 0) const;
  /// Forbids all system calls but those of an engine with WASI. Of two calls both apply.
  void forbid_calls(FilterOptions options) const;
};

}  // namespace kuasar::wasm
