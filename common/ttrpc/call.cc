#include "ttrpc/call.h"

#include <google/protobuf/message_lite.h>

#include "ttrpc/frame.h"

namespace kuasar::ttrpc {

Result<> parse_payload(const std::string& payload, google::protobuf::MessageLite& message) {
  if (message.ParseFromString(payload)) return {};
  return fail(Code::kInvalidArgument, "the payload of {} bytes is no {}", payload.size(),
              message.GetTypeName());
}

Result<std::string> serialize_payload(const google::protobuf::MessageLite& message) {
  const std::size_t size = message.ByteSizeLong();
  if (size > kMaxData) {
    return fail(Code::kResourceExhausted, "a {} of {} bytes does not fit a ttrpc message of {}",
                message.GetTypeName(), size, kMaxData);
  }
  std::string bytes;
  if (!message.SerializeToString(&bytes)) {
    return fail(Code::kInternal, "cannot serialize a {}", message.GetTypeName());
  }
  return bytes;
}

}  // namespace kuasar::ttrpc
