#pragma once

#include <string_view>

#include "base/error.h"

namespace kuasar {

/// Named points in the code where a test lets this process die, stop, or meet an error. Only in
/// builds with KUASAR_FAILPOINTS (the asan preset), and only when the environment names a directory
/// as KUASAR_FAILPOINT_DIR: the file <name> in it is removed, once, and says what happens: "kill"
/// is SIGKILL to this process, "stop" is SIGSTOP, "abort" is abort(3), "fail" an error. Elsewhere
/// they compile to nothing. Any thread may pass one.
#ifdef KUASAR_FAILPOINTS
inline constexpr bool kHasFailpoints = true;
/// The name is given in parts, so that a build without failpoints pays nothing for it. "fail" is
/// the same as nothing here, and the file stays.
void failpoint(std::string_view name, std::string_view more = {}, std::string_view last = {});
/// The same where an error can be returned: INTERNAL, "failpoint <name>".
Result<> failpoint_result(std::string_view name);
#else
inline constexpr bool kHasFailpoints = false;
inline void failpoint(std::string_view, std::string_view = {}, std::string_view = {}) {}
inline Result<> failpoint_result(std::string_view) {
  return {};
}
#endif

}  // namespace kuasar
