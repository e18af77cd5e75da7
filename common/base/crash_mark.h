#pragma once

#include <filesystem>

#include "base/error.h"

namespace kuasar {

/// Tells a crash of ours (abort, a bad address...) from a kill by somebody else: what ran when a
/// process crashed may have been the cause, and must not be run again for ever.
///
/// True when the process that had the mark before us crashed. From now on a crash of this process
/// writes the mark: SIGABRT, SIGSEGV, SIGBUS, SIGFPE and SIGILL, before their usual effect
/// (signal(7)). kUnknown and others with the errno when the file cannot be used: then nothing is
/// marked.
Result<bool> take_crash_mark(const std::filesystem::path& file);

}  // namespace kuasar
