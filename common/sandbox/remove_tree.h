#pragma once

#include <filesystem>
#include <string>

#include "base/error.h"

namespace kuasar::sandbox {

/// Removes a directory and all below it, without following a symbolic link and without entering
/// a mount: one that is found inside is kFailedPrecondition with its path, and what does not lie
/// in it is removed all the same. Nothing there: success. `last` names an entry of `dir` that goes
/// after all others, and only if they went.
Result<> remove_tree(const std::filesystem::path& dir, const std::string& last = {});

/// Removes what lies in `dir` but not `dir` itself nor its entry `keep`.
Result<> remove_tree_content(const std::filesystem::path& dir, const std::string& keep);

}  // namespace kuasar::sandbox
