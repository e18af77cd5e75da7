#include "oci/runtime_log.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/string.hpp>
#include <cerrno>

#include "base/unique_fd.h"

namespace kuasar::oci {
namespace {

namespace json = boost::json;

constexpr std::size_t kMaxTail = 64 * 1024;
constexpr std::size_t kMaxMessage = 4096;
constexpr std::size_t kMaxLastWords = 200;

// Calls `use` with each line, the last one first, until it returns true.
template <typename Use>
void lines_backwards(std::string_view text, Use use) {
  while (!text.empty()) {
    if (text.ends_with('\n')) {
      text.remove_suffix(1);
      continue;
    }
    const std::size_t newline = text.rfind('\n');
    const std::size_t start = newline == text.npos ? 0 : newline + 1;
    if (use(text.substr(start))) return;
    text = text.substr(0, start);
  }
}

// Cuts valid UTF-8 at a character.
void limit_utf8(std::string& text, std::size_t limit) {
  if (text.size() <= limit) return;
  while (limit > 0 && (static_cast<unsigned char>(text[limit]) & 0xC0U) == 0x80U) --limit;
  text.resize(limit);
  text += "...";
}

void blank_control_characters(std::string& text) {
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = ' ';
  }
  while (text.ends_with(' ')) text.pop_back();
}

// runc writes an object per line; crun's begins with a line "{" and ends with a line "}".
std::string_view object_ending_with(std::string_view line, std::string_view log) {
  if (line != "}") return line;
  log = log.substr(0, static_cast<std::size_t>(line.data() - log.data()) + 1);
  const std::size_t before = log.rfind("\n{\n");
  if (before != log.npos) return log.substr(before + 1);
  return log.starts_with("{\n") ? log : line;
}

std::string error_of_object(std::string_view text) {
  boost::system::error_code ec;
  const json::value value = json::parse(text, ec);
  if (ec || !value.is_object()) return {};
  const json::value* level = value.get_object().if_contains("level");
  const json::value* msg = value.get_object().if_contains("msg");
  if (level == nullptr || !level->is_string() || msg == nullptr || !msg->is_string()) return {};
  const std::string_view name = level->get_string();
  if (name != "error" && name != "fatal" && name != "panic") return {};
  std::string message(msg->get_string());
  blank_control_characters(message);
  limit_utf8(message, kMaxMessage);
  return message;
}

}  // namespace

std::string last_error_message(std::string_view log) {
  std::string found;
  lines_backwards(log, [&](std::string_view line) {
    found = error_of_object(object_ending_with(line, log));
    return !found.empty();
  });
  return found;
}

std::string last_words(std::string_view log) {
  std::string found;
  lines_backwards(log, [&](std::string_view line) {
    found = line.substr(0, kMaxLastWords);
    for (char& c : found) {
      if (static_cast<unsigned char>(c) > 0x7E) c = '?';
    }
    blank_control_characters(found);
    return !found.empty();
  });
  return found;
}

std::string first_criu_error(std::string_view log) {
  // "(00.012345) Error (criu/kerndat.c:1047): cannot ..."
  constexpr std::string_view kMark = " Error (";
  const std::size_t mark = log.find(kMark);
  if (mark == log.npos) return {};
  std::string_view line = log.substr(mark + kMark.size());
  line = line.substr(0, line.find('\n'));
  const std::size_t end_of_place = line.find("): ");
  if (end_of_place != line.npos) line.remove_prefix(end_of_place + 3);
  return last_words(line);
}

std::string read_log_tail(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  struct stat st {};
  if (!fd || ::fstat(fd.get(), &st) != 0 || !S_ISREG(st.st_mode)) return {};
  const off_t size = st.st_size;
  off_t at = size > static_cast<off_t>(kMaxTail) ? size - static_cast<off_t>(kMaxTail) : 0;
  std::string tail;
  char buffer[16384];
  while (tail.size() < kMaxTail) {
    const ssize_t n = ::pread(fd.get(), buffer, sizeof buffer, at);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    tail.append(buffer, static_cast<std::size_t>(n));
    at += n;
  }
  return tail;
}

}  // namespace kuasar::oci
