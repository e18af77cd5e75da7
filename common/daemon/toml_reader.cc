#include "daemon/toml_reader.h"

#include <algorithm>
#include <cerrno>
#include <iterator>
#include <sstream>
#include <string_view>
#include <system_error>
#include <toml.hpp>

#include "base/files.h"

namespace kuasar::daemon {
namespace {

// Far above any configuration; a wrong path (a disk image, /dev/zero) must not fill the memory.
constexpr std::size_t kMaxConfigSize = 1U << 20;

// toml11 4 renamed what tells a line and gave its errors another shape.
#if TOML11_VERSION_MAJOR >= 4
unsigned line_of(const toml::source_location& location) {
  return static_cast<unsigned>(location.first_line_number());
}
unsigned line_of_error(const toml::syntax_error& error) {
  if (error.errors().empty() || error.errors().front().locations().empty()) return 1;
  return line_of(error.errors().front().locations().front().first);
}
std::string title_of_error(const toml::syntax_error& error) {
  return error.errors().empty() ? error.what() : error.errors().front().title();
}
#else
unsigned line_of(const toml::source_location& location) {
  return static_cast<unsigned>(location.line());
}
unsigned line_of_error(const toml::syntax_error& error) {
  return line_of(error.location());
}
std::string title_of_error(const toml::syntax_error& error) {
  return error.what();
}
#endif

// The first line of a message of toml11, without its decoration and its own functions' names.
std::string plain_title(std::string title) {
  title = title.substr(0, title.find('\n'));
  for (const std::string prefix : {"[error] ", "toml::"}) {
    if (title.compare(0, prefix.size(), prefix) == 0) title.erase(0, prefix.size());
  }
  const std::size_t colon = title.find(": ");
  if (colon != std::string::npos && title.substr(0, colon).find(' ') == std::string::npos) {
    title.erase(0, colon + 2);
  }
  return title;
}

std::string type_in_words(toml::value_t type) {
  switch (type) {
    case toml::value_t::floating: return "a float";
    case toml::value_t::array: return "an array";
    case toml::value_t::table: return "an empty table";
    case toml::value_t::offset_datetime:
    case toml::value_t::local_datetime:
    case toml::value_t::local_date:
    case toml::value_t::local_time: return "a date or time";
    default: return "a value of another type";
  }
}

void flatten(const toml::value& value, const std::vector<std::string>& path,
             const std::string& file, std::vector<ConfigEntry>& entries) {
  if (value.is_table() && (!value.as_table().empty() || path.empty())) {
    for (const auto& [key, member] : value.as_table()) {
      std::vector<std::string> member_path = path;
      member_path.push_back(key);
      flatten(member, member_path, file, entries);
    }
    return;
  }
  ConfigEntry entry{path, OtherToml{}, file, line_of(value.location())};
  if (value.is_boolean()) {
    entry.value = value.as_boolean();
  } else if (value.is_integer()) {
    entry.value = static_cast<std::int64_t>(value.as_integer());
  } else if (value.is_string()) {
    entry.value = toml::get<std::string>(value);
  } else {
    entry.value = OtherToml{type_in_words(value.type())};
  }
  entries.push_back(std::move(entry));
}

// Two digits and '-' at its beginning: only with them is the order of the files what it looks like.
bool is_numbered(std::string_view name) {
  const auto digit = [](char c) { return c >= '0' && c <= '9'; };
  return name.size() > 3 && digit(name[0]) && digit(name[1]) && name[2] == '-';
}

Result<std::vector<std::filesystem::path>> drop_ins(const std::filesystem::path& dir) {
  std::vector<std::filesystem::path> files;
  std::error_code ec;
  std::filesystem::directory_iterator it(dir, ec);
  if (ec == std::errc::no_such_file_or_directory) return files;
  for (; !ec && it != std::filesystem::directory_iterator(); it.increment(ec)) {
    const std::string name = it->path().filename().native();
    if (!name.ends_with(".toml") || name.starts_with('.')) continue;
    if (!is_numbered(name)) {
      return fail(Code::kInvalidArgument,
                  "{}: a drop-in is named NN-NAME.toml, with two digits that give the order: "
                  "rename it, or give it another ending if it is not to be read",
                  it->path().native());
    }
    files.push_back(it->path());
  }
  if (ec) return fail(Error::from_errno_value(ec.value(), "read", dir.native()));
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace

Result<std::vector<ConfigEntry>> parse_toml(const std::string& text, const std::string& file) {
  // toml11 3 fails on a text without any line (an empty file is a valid configuration).
  std::istringstream stream(text + "\n");
  std::vector<ConfigEntry> entries;
  try {
    flatten(toml::parse(stream, file), {}, file, entries);
  } catch (const toml::syntax_error& error) {
    return fail(Code::kInvalidArgument, "{}:{}: {}", file, line_of_error(error),
                plain_title(title_of_error(error)));
  } catch (const std::exception& error) {
    return fail(Code::kInvalidArgument, "{}: {}", file, plain_title(error.what()));
  }
  std::stable_sort(entries.begin(), entries.end(), [](const ConfigEntry& a, const ConfigEntry& b) {
    return a.line != b.line ? a.line < b.line : a.path < b.path;
  });
  return entries;
}

Result<std::vector<ConfigEntry>> read_config_files(const std::filesystem::path& main_file,
                                                   bool must_exist) {
  std::vector<ConfigEntry> all;
  const auto append = [&all](const std::string& text, const std::string& file) -> Result<> {
    TRY(std::vector<ConfigEntry> entries, parse_toml(text, file));
    all.insert(all.end(), std::make_move_iterator(entries.begin()),
               std::make_move_iterator(entries.end()));
    return {};
  };

  Result<std::string> text = read_file(main_file, kMaxConfigSize);
  if (text) {
    CHECK_OK(append(*text, main_file.native()));
  } else if (must_exist || text.error().err != ENOENT) {
    return fail(std::move(text).error());
  }

  std::filesystem::path dir = main_file;
  if (dir.extension() == ".toml") dir.replace_extension();
  dir += ".d";
  TRY(const std::vector<std::filesystem::path> files, drop_ins(dir));
  for (const std::filesystem::path& file : files) {
    TRY(const std::string content, read_file(file, kMaxConfigSize));
    CHECK_OK(append(content, file.native()));
  }
  return all;
}

}  // namespace kuasar::daemon
