#pragma once

#include <string>
#include <string_view>

namespace kuasar::wasm {

/// dlopen()s libcrypto, whose SHA-256 uses the processor's own instructions. False with `why`.
bool load_digest(std::string& why);
/// 64 hexadecimal digits. After load_digest().
std::string sha256_of(std::string_view bytes);

}  // namespace kuasar::wasm
