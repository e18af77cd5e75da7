#pragma once

#include <optional>
#include <string>
#include <vector>

#include "support/lab.h"

namespace kuasar::test {

/// The wasm sandboxer of the demo's lab, if an engine is to be had; else why not.
std::optional<Neighbour> wasm_neighbour(std::string& reason);

/// Runs a WebAssembly pod beside the others of the lab and removes it; what there is to say of it,
/// one line each, the first being the headline. Throws std::runtime_error.
std::vector<std::string> run_wasm_pod(Lab& lab, const Neighbour& neighbour);

}  // namespace kuasar::test
