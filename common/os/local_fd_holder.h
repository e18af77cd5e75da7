#pragma once

#include <map>
#include <string>

#include "os/fd_holder.h"

namespace kuasar::os {

/// Holds descriptors in this very process: to FdHolder what DirectSpawner is to Spawner. When the
/// process dies they are gone.
class LocalFdHolder : public FdHolder {
 public:
  Result<> hold(const std::string& name, int fd) override;
  void drop(const std::string& name) override;
  Result<UniqueFd> get(const std::string& name) override;

  std::size_t size() const { return held_.size(); }

 private:
  std::map<std::string, UniqueFd> held_;
};

}  // namespace kuasar::os
