#include "base/helper.h"

#include <unistd.h>

#include <filesystem>

namespace kuasar {

Result<std::string> find_helper(const std::string& name) {
  std::error_code ec;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", ec);
  if (ec) return fail(Error::from_errno_value(ec.value(), "readlink", "/proc/self/exe"));
  const std::filesystem::path bin = self.parent_path();
  for (const std::filesystem::path& candidate :
       {bin / name, bin.parent_path() / "libexec" / "kuasar" / name}) {
    if (::access(candidate.c_str(), X_OK) == 0) return candidate.native();
  }
  return fail(Code::kNotFound,
              "{} is neither beside {} nor in ../libexec/kuasar: install the suite "
              "whole",
              name, self.native());
}

}  // namespace kuasar
