#pragma once

#include <string>
#include <string_view>

#include "base/error.h"

namespace kuasar::oci {

/// Checks the process of an exec (an OCI Process as JSON), which comes from outside, and makes the
/// text for the runtime of it: what we do not know is refused by its name, `terminal` is set as
/// the call says. Everything else stays as it was. kInvalidArgument with the field's name
/// ("process.args: must not be empty"), kUnimplemented for a field that no runtime knows.
Result<std::string> exec_process(std::string_view json, bool terminal);

}  // namespace kuasar::oci
