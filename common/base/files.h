#pragma once

#include <sys/types.h>

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>

#include "base/error.h"

namespace kuasar {

/// Whole content of a file, at most `limit` bytes: a longer one is kResourceExhausted.
Result<std::string> read_file(const std::filesystem::path& path, std::size_t limit = 16U << 20);
/// The same of a file that is named from a directory, given by its descriptor (openat(2)).
Result<std::string> read_file_at(int dir, const std::filesystem::path& path,
                                 std::size_t limit = 16U << 20);

/// Writes a file anew (O_TRUNC). For files whose half-written state nobody reads.
Result<> write_file(const std::filesystem::path& path, std::string_view content,
                    mode_t mode = 0600);

/// Replaces a file so that a reader sees the old content or the new one, never a part: a hidden
/// temporary in the same directory, then rename(2). A failure leaves no temporary behind.
Result<> write_file_atomic(const std::filesystem::path& path, std::string_view content,
                           mode_t mode = 0600);

/// mkdir(2) with exactly `mode`; an existing directory is no error and keeps its mode.
Result<> make_dir(const std::filesystem::path& path, mode_t mode = 0700);

/// Prefix of the temporaries of write_file_atomic: what starts with it in a state directory was
/// left by a crash and holds nothing.
inline constexpr std::string_view kTempPrefix = ".tmp-";

}  // namespace kuasar
