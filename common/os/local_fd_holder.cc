#include "os/local_fd_holder.h"

#include "os/fifo.h"

namespace kuasar::os {

Result<> LocalFdHolder::hold(const std::string& name, int fd) {
  if (name.empty() || name.size() > kMaxHeldName) {
    return fail(Code::kInvalidArgument, "\"{}\" is no name of a descriptor", name.substr(0, 400));
  }
  TRY(held_[name], duplicate(fd));
  return {};
}

void LocalFdHolder::drop(const std::string& name) {
  held_.erase(name);
}

Result<UniqueFd> LocalFdHolder::get(const std::string& name) {
  const auto found = held_.find(name);
  if (found == held_.end()) return fail(Code::kNotFound, "nothing is held as {}", name);
  return duplicate(found->second.get());
}

}  // namespace kuasar::os
