#include <cstdlib>
#include <ctime>
#include <string_view>

#include "bench/cri_client.h"

namespace kuasar::bench {

// "<RFC 3339 time> <stdout|stderr> <tags> <bytes>\n"; tags are separated by ':', the first is P or
// F. The bytes may hold anything but a newline.
Result<CriLog> parse_cri_log(const std::string& text) {
  CriLog log;
  std::string_view rest = text;
  for (int number = 1; !rest.empty(); ++number) {
    const std::size_t end = rest.find('\n');
    if (end == std::string_view::npos) {
      return fail(Code::kInvalidArgument, "log entry {} has no end", number);
    }
    const std::string_view entry = rest.substr(0, end);
    rest.remove_prefix(end + 1);

    const std::size_t time_end = entry.find(' ');
    const std::size_t stream_end = entry.find(' ', time_end + 1);
    const std::size_t tag_end = entry.find(' ', stream_end + 1);
    if (time_end == std::string_view::npos || stream_end == std::string_view::npos ||
        tag_end == std::string_view::npos) {
      return fail(Code::kInvalidArgument, "log entry {} has not four fields", number);
    }
    const std::string_view stream = entry.substr(time_end + 1, stream_end - time_end - 1);
    const char tag = entry[stream_end + 1];
    if ((stream != "stdout" && stream != "stderr") || (tag != 'P' && tag != 'F')) {
      return fail(Code::kInvalidArgument, "log entry {} is not in CRI's format", number);
    }
    std::string& bytes = stream == "stdout" ? log.out : log.err;
    bytes += entry.substr(tag_end + 1);
    if (tag == 'F') bytes += '\n';
  }
  return log;
}

// RFC 3339 with up to nine digits of a second, and an offset from UTC.
Result<std::chrono::system_clock::time_point> first_log_time(const std::string& text) {
  std::tm parts{};
  const char* rest = ::strptime(text.c_str(), "%Y-%m-%dT%H:%M:%S", &parts);
  if (rest == nullptr) return fail(Code::kInvalidArgument, "the log begins with no time");
  double fraction = 0;
  if (*rest == '.') {
    char* end = nullptr;
    fraction = std::strtod(rest, &end);
    rest = end;
  }
  std::time_t seconds = ::timegm(&parts);
  if (*rest == '+' || *rest == '-') {
    seconds -= (*rest == '+' ? 1 : -1) * (std::atoi(rest + 1) * 3600 + std::atoi(rest + 4) * 60);
  }
  return std::chrono::system_clock::from_time_t(seconds) +
         std::chrono::duration_cast<std::chrono::system_clock::duration>(
             std::chrono::duration<double>(fraction));
}

}  // namespace kuasar::bench
