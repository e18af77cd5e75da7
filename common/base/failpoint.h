#pragma once

#include <string_view>

namespace kuasar {

/// A named point in the code where a test lets this process die or stop. Only in builds with
/// KUASAR_FAILPOINTS (the asan preset), and only when the environment names a directory as
/// KUASAR_FAILPOINT_DIR: the file <name> in it is removed, once, and says what happens: "kill" is
/// SIGKILL to this process, "stop" is SIGSTOP. Elsewhere it compiles to nothing.
/// The name is given in parts, so that a build without failpoints pays nothing for it.
#ifdef KUASAR_FAILPOINTS
inline constexpr bool kHasFailpoints = true;
void failpoint(std::string_view name, std::string_view more = {}, std::string_view last = {});
#else
inline constexpr bool kHasFailpoints = false;
inline void failpoint(std::string_view, std::string_view = {}, std::string_view = {}) {}
#endif

}  // namespace kuasar
