#pragma once

#include <string>

#include "base/error.h"

namespace kuasar {

/// The path of a program that belongs to the suite: beside this program (a build tree), or in
/// ../libexec/kuasar/ from there (installed). kNotFound says where it was looked for.
Result<std::string> find_helper(const std::string& name);

}  // namespace kuasar
