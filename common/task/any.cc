#include "task/any.h"

#include <google/protobuf/any.pb.h>

namespace kuasar::task {

google::protobuf::Any pack_any(const google::protobuf::MessageLite& message) {
  google::protobuf::Any any;
  any.set_type_url(message.GetTypeName());
  message.SerializeToString(any.mutable_value());
  return any;
}

bool any_is(const google::protobuf::Any& any, std::string_view full_name) {
  const std::string_view url = any.type_url();
  const std::size_t slash = url.rfind('/');
  return (slash == std::string_view::npos ? url : url.substr(slash + 1)) == full_name;
}

}  // namespace kuasar::task
