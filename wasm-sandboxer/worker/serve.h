#pragma once

#include "worker/child.h"

namespace kuasar::wasm {

/// What a zygote does, of an engine or of a module: makes a child for every request on
/// kZygoteSocket, until the other end is closed. Its process has one thread. The parent of a child
/// is the zygote's own.
[[noreturn]] void serve(const Inheritance& zygote);

}  // namespace kuasar::wasm
