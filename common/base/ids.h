#pragma once

#include <string_view>

#include "base/error.h"

namespace kuasar {

/// The longest id that is accepted; containerd's own are 64 hexadecimal digits.
inline constexpr std::size_t kMaxIdLength = 128;

/// Accepts `[A-Za-z0-9._-]{1,128}` other than "." and "..": an id that passes may become one
/// component of a path. The error is kInvalidArgument and names `field`.
Result<> validate_id(std::string_view field, std::string_view id);

}  // namespace kuasar
