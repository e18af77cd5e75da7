#pragma once

#include <string>
#include <string_view>

#include "base/error.h"

namespace google::rpc {
class Status;
}

namespace kuasar::ttrpc {

/// The longest message that travels in a status, so that an error answer fits one send().
inline constexpr std::size_t kMaxStatusMessage = 16U << 10;

/// An error as google.rpc.Status. The message is made valid UTF-8 (Go refuses anything else) and
/// cut at kMaxStatusMessage. Code::kOk, which is no error, becomes UNKNOWN.
google::rpc::Status to_status(const Error& error);
/// A status that is not OK as an error; a code that gRPC does not know becomes kUnknown.
Error from_status(const google::rpc::Status& status);

/// `text` with every byte that is not part of a well-formed UTF-8 sequence replaced by '?'.
std::string printable_utf8(std::string_view text);

}  // namespace kuasar::ttrpc
