#include "base/ids.h"

#include <algorithm>

namespace kuasar {
namespace {

bool allowed(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
         c == '_' || c == '-';
}

}  // namespace

Result<> validate_id(std::string_view field, std::string_view id) {
  if (id.empty()) return fail(Code::kInvalidArgument, "{} is empty", field);
  if (id.size() > kMaxIdLength) {
    return fail(Code::kInvalidArgument, "{} has {} characters, at most {} are allowed", field,
                id.size(), kMaxIdLength);
  }
  if (id == "." || id == "..") {
    return fail(Code::kInvalidArgument, "{} \"{}\" is not a name", field, id);
  }
  if (!std::all_of(id.begin(), id.end(), allowed)) {
    return fail(Code::kInvalidArgument,
                "{} has a character outside [A-Za-z0-9._-]; give the id that containerd uses",
                field);
  }
  return {};
}

}  // namespace kuasar
