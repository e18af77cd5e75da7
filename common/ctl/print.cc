#include "ctl/print.h"

#include <fmt/format.h>
#include <google/protobuf/message.h>
#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <array>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <numeric>

namespace kuasar::ctl {
namespace {

namespace json = boost::json;

constexpr std::size_t kGap = 2;
constexpr std::size_t kNarrowest = 4;

// What a pod brings must not speak to a terminal.
std::string printable(std::string_view text) {
  std::string out(text);
  for (char& c : out) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  return out;
}

std::string fitted(std::string text, std::size_t width) {
  if (text.size() <= width) return text;
  text.resize(width - 2);
  return text + "..";
}

void print_value(const json::value& value, std::size_t indent, std::string& out);

void print_member(const json::value& value, std::size_t indent, std::string& out) {
  out += "\n" + std::string(indent, ' ');
  print_value(value, indent, out);
}

void print_value(const json::value& value, std::size_t indent, std::string& out) {
  constexpr std::size_t kStep = 2;
  if (const json::array* array = value.if_array(); array != nullptr && !array->empty()) {
    out += '[';
    for (auto it = array->begin(); it != array->end(); ++it) {
      if (it != array->begin()) out += ',';
      print_member(*it, indent + kStep, out);
    }
    out += "\n" + std::string(indent, ' ') + ']';
  } else if (const json::object* object = value.if_object();
             object != nullptr && !object->empty()) {
    out += '{';
    for (auto it = object->begin(); it != object->end(); ++it) {
      if (it != object->begin()) out += ',';
      out +=
          "\n" + std::string(indent + kStep, ' ') + json::serialize(json::string(it->key())) + ": ";
      print_value(it->value(), indent + kStep, out);
    }
    out += "\n" + std::string(indent, ' ') + '}';
  } else {
    out += json::serialize(value);
  }
}

}  // namespace

std::string table(const std::vector<std::string>& headings,
                  const std::vector<std::vector<std::string>>& rows, std::size_t columns) {
  std::vector<std::vector<std::string>> lines{headings};
  for (const std::vector<std::string>& row : rows) lines.push_back(row);
  std::vector<std::size_t> widths(headings.size(), 0);
  for (std::vector<std::string>& line : lines) {
    line.resize(headings.size());
    for (std::size_t i = 0; i < line.size(); ++i) {
      line[i] = printable(line[i]);
      widths[i] = std::max(widths[i], line[i].size());
    }
  }
  const std::size_t gaps = kGap * (headings.size() - 1);
  while (std::accumulate(widths.begin(), widths.end(), gaps) > columns) {
    const auto widest = std::max_element(widths.begin(), widths.end());
    if (*widest <= kNarrowest) break;
    --*widest;
  }
  std::string out;
  for (const std::vector<std::string>& line : lines) {
    std::string text;
    for (std::size_t i = 0; i < line.size(); ++i) {
      text += fmt::format("{:<{}}", fitted(line[i], widths[i]), widths[i] + kGap);
    }
    text.resize(text.find_last_not_of(' ') + 1);
    out += text + "\n";
  }
  return out;
}

std::string paragraph(std::string_view text, std::size_t indent, std::size_t columns) {
  const std::string clean = printable(text);
  std::string out;
  std::string line(indent, ' ');
  std::size_t begin = 0;
  while (begin < clean.size()) {
    const std::size_t end = std::min(clean.find(' ', begin), clean.size());
    const std::string word = clean.substr(begin, end - begin);
    begin = end + 1;
    if (line.size() > indent && line.size() + 1 + word.size() > columns) {
      out += line + "\n";
      line.assign(indent, ' ');
    }
    if (line.size() > indent) line += ' ';
    line += word;
  }
  return out + line + "\n";
}

std::string pretty(const json::value& value) {
  std::string out;
  print_value(value, 0, out);
  return out + "\n";
}

json::value to_json(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  std::string text;
  if (!google::protobuf::util::MessageToJsonString(message, &text, options).ok()) {
    return json::object();
  }
  return json::parse(text);
}

std::string age(long long seconds) {
  seconds = std::max(seconds, 0LL);
  if (seconds < 60) return fmt::format("{}s", seconds);
  if (seconds < 60 * 60) return fmt::format("{}m", seconds / 60);
  if (seconds < 24 * 60 * 60) return fmt::format("{}h", seconds / (60 * 60));
  return fmt::format("{}d", seconds / (24 * 60 * 60));
}

std::string bytes(unsigned long long count) {
  constexpr std::array<const char*, 5> kUnits{"KiB", "MiB", "GiB", "TiB", "PiB"};
  if (count < 1024) return std::to_string(count);
  double value = static_cast<double>(count);
  std::size_t unit = 0;
  for (value /= 1024; value >= 1024 && unit + 1 < kUnits.size(); value /= 1024) ++unit;
  return fmt::format("{:.1f} {}", value, kUnits[unit]);
}

std::string short_id(std::string_view id) {
  constexpr std::size_t kShort = 13;
  return std::string(id.substr(0, kShort));
}

}  // namespace kuasar::ctl
