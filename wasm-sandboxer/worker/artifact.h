#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

// Native code of modules, compiled ahead of time, as files of one directory that belongs to the
// daemon (aot_cache.h). The worker reads them, the daemon writes them.

namespace kuasar::wasm {

/// A file's name: the module's SHA-256, a dot, and the stamp of what it was compiled by and for.
std::string artifact_name(const std::string& digest, const std::string& stamp);
/// 16 hexadecimal digits of an engine's name, its library's file and this machine's processor. An
/// engine refuses code of another release or for other instructions by itself; the stamp keeps the
/// two apart. Empty with `why` when it cannot be told.
std::string make_stamp(const std::string& engine, const std::string& library_path,
                       std::string& why);

/// The content of an artifact's file: a head of 80 bytes (a magic word, the code's size in bytes,
/// the hexadecimal SHA-256 of it), then the code.
std::string seal(std::string_view code);
/// The code of a whole file; nothing when the file is not what seal() made.
std::optional<std::string_view> unseal(std::string_view file);

}  // namespace kuasar::wasm
