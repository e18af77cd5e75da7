#include "oci/json_view.h"

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/string.hpp>

namespace kuasar::oci {
namespace {

namespace json = boost::json;

std::string ascii_fold(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    if (text.starts_with("\xC5\xBF")) {
      out += 's';
      text.remove_prefix(2);
    } else if (text.starts_with("\xE2\x84\xAA")) {
      out += 'k';
      text.remove_prefix(3);
    } else {
      const char c = text.front();
      out += c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
      text.remove_prefix(1);
    }
  }
  return out;
}

template <typename Value>
Result<Value*> walk(Value& object, std::string_view path) {
  Value* at = &object;
  std::size_t start = 0;
  for (;;) {
    if (!at->is_object()) {
      const std::string_view where = start == 0 ? "config.json" : path.substr(0, start - 1);
      return wrong_kind(where, "an object", *at);
    }
    const std::size_t dot = path.find('.', start);
    const std::string_view key = path.substr(start, dot == path.npos ? dot : dot - start);
    at = at->get_object().if_contains(key);
    if (at == nullptr || at->is_null()) return nullptr;
    if (dot == path.npos) return at;
    start = dot + 1;
  }
}

}  // namespace

std::string_view json_kind(const json::value& value) {
  switch (value.kind()) {
    case json::kind::null: return "null";
    case json::kind::bool_: return "a boolean";
    case json::kind::int64:
    case json::kind::uint64:
    case json::kind::double_: return "a number";
    case json::kind::string: return "a string";
    case json::kind::array: return "an array";
    case json::kind::object: return "an object";
  }
  return "an unknown kind";
}

tl::unexpected<Error> wrong_kind(std::string_view where, std::string_view wanted,
                                 const json::value& found) {
  return fail(Code::kInvalidArgument, "{}: expected {}, found {}", where, wanted, json_kind(found));
}

Result<const json::value*> find_field(const json::value& object, std::string_view path) {
  return walk(object, path);
}
Result<json::value*> find_field(json::value& object, std::string_view path) {
  return walk(object, path);
}

Result<std::string> as_text(const json::value& value, std::string_view where) {
  const json::string* text = value.if_string();
  if (text == nullptr) return wrong_kind(where, "a string", value);
  if (std::string_view(*text).find('\0') != std::string_view::npos) {
    return fail(Code::kInvalidArgument, "{}: the string holds a NUL byte", where);
  }
  return std::string(*text);
}

Result<std::vector<std::string>> as_texts(const json::value& value, std::string_view where) {
  const json::array* array = value.if_array();
  if (array == nullptr) return wrong_kind(where, "an array of strings", value);
  std::vector<std::string> out;
  out.reserve(array->size());
  for (std::size_t i = 0; i < array->size(); ++i) {
    TRY(out.emplace_back(), as_text((*array)[i], fmt::format("{}[{}]", where, i)));
  }
  return out;
}

Result<std::string> text_field(const json::value& object, std::string_view path) {
  TRY(const json::value* value, find_field(object, path));
  if (value == nullptr) return std::string();
  return as_text(*value, path);
}

Result<bool> bool_field(const json::value& object, std::string_view path) {
  TRY(const json::value* value, find_field(object, path));
  if (value == nullptr) return false;
  if (!value->is_bool()) return wrong_kind(path, "a boolean", *value);
  return value->get_bool();
}

bool same_to_go(std::string_view a, std::string_view b) {
  return a == b || ascii_fold(a) == ascii_fold(b);
}

}  // namespace kuasar::oci
