#pragma once

#include <string>

#include "base/error.h"
#include "base/unique_fd.h"

namespace kuasar::os {

/// Keeps duplicates of descriptors beyond the life of this process, by name: on the host the
/// keeper does, in tests and in a guest this process itself. Names are made of validated ids and
/// '/', at most kMaxHeldName bytes. Runs on the io thread; no call waits for anything but the
/// holder's answer (some 50 us).
class FdHolder {
 public:
  static constexpr std::size_t kMaxHeldName = 319;

  virtual ~FdHolder() = default;

  /// Keeps a duplicate of `fd` as `name`, in place of an earlier one of that name.
  virtual Result<> hold(const std::string& name, int fd) = 0;
  /// Lets go of it. An unknown name: nothing.
  virtual void drop(const std::string& name) = 0;
  /// A duplicate of what is held as `name`, perhaps by an earlier daemon; kNotFound.
  virtual Result<UniqueFd> get(const std::string& name) = 0;
};

}  // namespace kuasar::os
