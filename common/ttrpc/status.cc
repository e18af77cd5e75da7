#include "ttrpc/status.h"

#include "google/rpc/status.pb.h"

namespace kuasar::ttrpc {
namespace {

bool is_continuation(std::string_view text, std::size_t at) {
  return at < text.size() && (static_cast<unsigned char>(text[at]) & 0xc0) == 0x80;
}

// Length of the well-formed sequence at `at` (RFC 3629, section 4), or 0.
std::size_t sequence_length(std::string_view text, std::size_t at) {
  const auto lead = static_cast<unsigned char>(text[at]);
  if (lead < 0x80) return 1;
  const std::size_t length = lead >= 0xc2 && lead <= 0xdf   ? 2
                             : lead >= 0xe0 && lead <= 0xef ? 3
                             : lead >= 0xf0 && lead <= 0xf4 ? 4
                                                            : 0;
  for (std::size_t i = 1; i < length; ++i) {
    if (!is_continuation(text, at + i)) return 0;
  }
  if (length < 3) return length;
  const auto second = static_cast<unsigned char>(text[at + 1]);
  const bool overlong = (lead == 0xe0 && second < 0xa0) || (lead == 0xf0 && second < 0x90);
  const bool surrogate = lead == 0xed && second > 0x9f;
  const bool too_high = lead == 0xf4 && second > 0x8f;
  return overlong || surrogate || too_high ? 0 : length;
}

}  // namespace

std::string printable_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t length = sequence_length(text, at);
    if (length == 0) {
      out.push_back('?');
      ++at;
    } else {
      out.append(text.substr(at, length));
      at += length;
    }
  }
  return out;
}

google::rpc::Status to_status(const Error& error) {
  google::rpc::Status status;
  const Code code = error.code == Code::kOk ? Code::kUnknown : error.code;
  status.set_code(static_cast<int>(code));
  std::string message = printable_utf8(error.message);
  if (message.size() > kMaxStatusMessage) {
    std::size_t end = kMaxStatusMessage;
    while (end > 0 && is_continuation(message, end)) --end;
    message.resize(end);
    message += "...";
  }
  status.set_message(std::move(message));
  return status;
}

Error from_status(const google::rpc::Status& status) {
  const int code = status.code();
  const bool known =
      code > static_cast<int>(Code::kOk) && code <= static_cast<int>(Code::kUnauthenticated);
  return Error{known ? static_cast<Code>(code) : Code::kUnknown, 0, status.message()};
}

}  // namespace kuasar::ttrpc
