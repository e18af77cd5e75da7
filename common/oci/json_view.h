#pragma once

#include <boost/json/value.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "oci/spec.h"

namespace kuasar::oci {

/// Reads fields of a JSON document that is not trusted. `where` is the JSON path of the value at
/// hand, for messages. null counts as absent everywhere. No executor, no state.

/// "a string", "an object"...
std::string_view json_kind(const boost::json::value& value);

/// kInvalidArgument "<where>: expected <wanted>, found <kind>".
tl::unexpected<Error> wrong_kind(std::string_view where, std::string_view wanted,
                                 const boost::json::value& found);

/// The member at a dotted path below an object ("process.user.uid"); nullptr when it or a parent
/// is absent, an error when a parent is no object.
Result<const boost::json::value*> find_field(const boost::json::value& object,
                                             std::string_view path);
Result<boost::json::value*> find_field(boost::json::value& object, std::string_view path);

/// The value as a string without NUL bytes.
Result<std::string> as_text(const boost::json::value& value, std::string_view where);
/// The value as an array of such strings.
Result<std::vector<std::string>> as_texts(const boost::json::value& value, std::string_view where);

/// find_field() with a type; an absent one is empty or false.
Result<std::string> text_field(const boost::json::value& object, std::string_view path);
Result<bool> bool_field(const boost::json::value& object, std::string_view path);

/// find_field() as mappings of ids; `where` is the JSON path of the field.
Result<std::vector<IdMapping>> read_mappings(const boost::json::value& object,
                                             std::string_view path, std::string_view where);

/// True when both are the same to encoding/json of Go, which ignores case and takes U+017F for s
/// and U+212A for k.
bool same_to_go(std::string_view a, std::string_view b);

}  // namespace kuasar::oci
