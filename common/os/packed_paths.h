#pragma once

#include <string>
#include <vector>

namespace kuasar::os {

/// Paths in little memory when each is much like the one before it, as a container's cgroups on
/// v1 are: a dozen directories that differ in their hierarchy's name. Each path has at most 64 KiB.
class PackedPaths {
 public:
  PackedPaths() = default;
  PackedPaths(const std::vector<std::string>& paths);  // NOLINT(google-explicit-constructor)

  std::vector<std::string> paths() const;
  operator std::vector<std::string>() const { return paths(); }  // NOLINT
  bool empty() const { return bytes_.empty(); }

 private:
  /// For each path: how many bytes at its beginning and its end are those of the one before, how
  /// many are between them (16 bits each), and these.
  std::string bytes_;
};

}  // namespace kuasar::os
