#pragma once

#include <string_view>

namespace google::protobuf {
class Any;
class MessageLite;
}  // namespace google::protobuf

namespace kuasar::task {

/// An Any whose type_url is the bare message name: containerd compares it as an exact string
/// (typeurl.Is), so Any::PackFrom and its "type.googleapis.com/" prefix must not be used (T4).
google::protobuf::Any pack_any(const google::protobuf::MessageLite& message);

/// True when `any` holds a message of this full name, with or without a prefix before a '/'.
bool any_is(const google::protobuf::Any& any, std::string_view full_name);

}  // namespace kuasar::task
