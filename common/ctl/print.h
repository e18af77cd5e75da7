#pragma once

#include <boost/json/value.hpp>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace google::protobuf {
class Message;
}

namespace kuasar::ctl {

/// The widest line of any text that is printed for people.
inline constexpr std::size_t kColumns = 100;

/// Rows under headings, each column as wide as its widest cell; where that is more than `columns`
/// in all, the widest columns give way and their cells end in "..". Every line ends with "\n" and
/// has no blanks before that. A row may be shorter than the headings.
std::string table(const std::vector<std::string>& headings,
                  const std::vector<std::vector<std::string>>& rows,
                  std::size_t columns = kColumns);

/// Words broken into lines of at most `columns`, each behind `indent` blanks; ends with "\n".
std::string paragraph(std::string_view text, std::size_t indent, std::size_t columns = kColumns);

/// JSON over several lines, two blanks per level; members stay in their order. Ends with "\n".
std::string pretty(const boost::json::value& value);
/// A message as the state files have it: field names as in the .proto, what is empty left out.
boost::json::value to_json(const google::protobuf::Message& message);

/// "41s", "7m", "5h", "3d": one unit, rounded down.
std::string age(long long seconds);
/// "512", "3.4 KiB", "1.0 GiB".
std::string bytes(unsigned long long count);
/// An id as crictl shows it: its first 13 characters.
std::string short_id(std::string_view id);

}  // namespace kuasar::ctl
