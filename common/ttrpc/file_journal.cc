#include "ttrpc/file_journal.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <array>
#include <boost/crc.hpp>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/files.h"
#include "base/log.h"

namespace kuasar::ttrpc {
namespace {

constexpr std::array<char, 8> kMagic = {'K', 'S', 'R', 'J', 'R', 'N', 'L', '1'};
constexpr std::uint32_t kUnanswered = 0x756e616e;
constexpr std::uint32_t kApplied = 0x6170706c;
constexpr std::uint32_t kStruck = 0x73747275;
// Unanswered, or applied, and a process has crashed meanwhile.
constexpr std::uint32_t kMarked = 0x6d61726b;
constexpr std::uint32_t kMarkedApplied = 0x6d61726c;
// An empty journal longer than this is cut; one with unanswered requests (a Wait stays for hours)
// is rewritten when it is kRewriteSize long and mostly answered.
constexpr std::uint64_t kCutSize = 8U << 10;
constexpr std::uint64_t kRewriteSize = 64U << 10;
// Bounds what open() reads: kMaxUnanswered frames of 4 MiB each are more than a peer can want.
constexpr std::size_t kReadLimit = 256U << 20;

struct FileHeader {
  std::array<char, 8> magic = kMagic;
  std::uint32_t last_stream = 0;
  std::uint32_t torn = 0;
  std::array<std::uint32_t, 4> reserved{};
};
static_assert(sizeof(FileHeader) == 32);

struct EntryHeader {
  std::uint32_t state = kUnanswered;
  std::uint32_t stream = 0;
  std::uint32_t length = 0;
  std::uint32_t crc = 0;
  std::uint64_t boottime_ns = 0;
};
static_assert(sizeof(EntryHeader) == 24);

std::uint64_t boottime_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_BOOTTIME, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000U +
         static_cast<std::uint64_t>(now.tv_nsec);
}

// Over everything but the state, which changes in place.
std::uint32_t checksum(const EntryHeader& header, std::string_view frame) {
  boost::crc_32_type crc;
  crc.process_bytes(&header.stream, sizeof header.stream);
  crc.process_bytes(&header.length, sizeof header.length);
  crc.process_bytes(&header.boottime_ns, sizeof header.boottime_ns);
  crc.process_bytes(frame.data(), frame.size());
  return crc.checksum();
}

template <class T>
std::string_view bytes_of(const T& object) {
  return {reinterpret_cast<const char*>(&object), sizeof object};
}

Result<> write_at(int fd, std::string_view bytes, std::uint64_t offset) {
  while (!bytes.empty()) {
    const ssize_t n = ::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_errno("write", "a journal");
    bytes.remove_prefix(static_cast<std::size_t>(n));
    offset += static_cast<std::uint64_t>(n);
  }
  return {};
}

std::uint32_t state_of(bool applied, bool marked) {
  if (marked) return applied ? kMarkedApplied : kMarked;
  return applied ? kApplied : kUnanswered;
}

std::string encode_entry(std::uint32_t stream, std::string_view frame, std::uint64_t time,
                         std::uint32_t state) {
  EntryHeader header;
  header.state = state;
  header.stream = stream;
  header.length = static_cast<std::uint32_t>(frame.size());
  header.boottime_ns = time;
  header.crc = checksum(header, frame);
  std::string entry(bytes_of(header));
  entry.append(frame);
  return entry;
}

}  // namespace

FileJournal::FileJournal(std::string path, UniqueFd fd)
    : path_(std::move(path)), fd_(std::move(fd)) {}

Result<std::unique_ptr<FileJournal>> FileJournal::open(const std::string& path,
                                                       std::function<void()> at_discard,
                                                       bool crashed) {
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!fd) return fail_errno("open", path);
  std::unique_ptr<FileJournal> journal(new FileJournal(path, std::move(fd)));
  CHECK_OK(journal->read_back());
  journal->at_discard_ = std::move(at_discard);
  if (crashed) journal->mark_crash();
  return journal;
}

Result<> FileJournal::read_back() {
  TRY(const std::string content, read_file(path_, kReadLimit));
  if (content.empty()) {
    size_ = sizeof(FileHeader);
    // On a full disk the first entry that finds room brings it.
    headed_ = write_header().has_value();
    return {};
  }
  headed_ = true;
  FileHeader header;
  if (content.size() < sizeof header ||
      std::memcmp(content.data(), kMagic.data(), kMagic.size()) != 0) {
    return fail(Code::kFailedPrecondition, "{} is no journal of this version ({} bytes)", path_,
                content.size());
  }
  std::memcpy(&header, content.data(), sizeof header);
  last_stream_ = header.last_stream;
  torn_ = header.torn;
  torn_at_open_ = torn_ != 0;
  return read_entries(content);
}

Result<> FileJournal::read_entries(std::string_view content) {
  std::uint64_t offset = sizeof(FileHeader);
  while (offset < content.size()) {
    EntryHeader header;
    const std::string_view rest = content.substr(offset);
    if (rest.size() < sizeof header) break;
    std::memcpy(&header, rest.data(), sizeof header);
    if (rest.size() - sizeof header < header.length) break;
    if (header.crc != checksum(header, rest.substr(sizeof header, header.length))) break;
    const std::uint64_t whole = sizeof header + header.length;
    last_stream_ = std::max(last_stream_, header.stream);
    if (header.state != kStruck) {
      Live& live = live_[header.stream];
      live = Live{offset, header.length, header.boottime_ns};
      live.applied = header.state == kApplied || header.state == kMarkedApplied;
      live.marked = header.state == kMarked || header.state == kMarkedApplied;
      live_bytes_ += whole;
    }
    offset += whole;
  }
  size_ = offset;
  if (offset == content.size()) return {};
  log::warning({},
               "{}: the last {} bytes are half an entry and are ignored: its request is still "
               "in the connection",
               path_, content.size() - offset);
  if (::ftruncate(fd_.get(), static_cast<off_t>(offset)) != 0) {
    return fail_errno("truncate", path_);
  }
  return {};
}

Result<> FileJournal::write_header() {
  FileHeader header;
  header.last_stream = last_stream_;
  header.torn = torn_;
  return write_at(fd_.get(), bytes_of(header), 0);
}

Result<> FileJournal::append(std::uint32_t stream, std::string_view frame) {
  const std::uint64_t now = boottime_ns();
  const std::string entry = encode_entry(stream, frame, now, kUnanswered);
  Result<> written = headed_ ? Result<>() : write_header();
  if (written) {
    headed_ = true;
    written = write_at(fd_.get(), entry, size_);
  }
  if (!written) {
    // What is left of it would be ignored as half an entry.
    const bool cut = ::ftruncate(fd_.get(), headed_ ? static_cast<off_t>(size_) : 0) == 0;
    if (!std::exchange(complained_, true) || !cut) {
      log::warning({},
                   "{}: {}; calls are served, but those under way would be lost with this "
                   "daemon: free some space there",
                   path_, written.error().message);
    }
    return {};
  }
  complained_ = false;
  live_[stream] = Live{size_, static_cast<std::uint32_t>(frame.size()), now};
  live_bytes_ += entry.size();
  size_ += entry.size();
  last_stream_ = std::max(last_stream_, stream);
  return {};
}

void FileJournal::set_state(std::uint32_t stream, std::uint32_t state) {
  const auto found = live_.find(stream);
  if (found == live_.end()) return;
  if (Result<> written = write_at(fd_.get(), bytes_of(state), found->second.offset); !written) {
    log::error({}, "{}: {}", path_, written.error().message);
  }
}

void FileJournal::mark_applied(std::uint32_t stream) {
  const auto found = live_.find(stream);
  if (found == live_.end()) return;
  found->second.applied = true;
  set_state(stream, state_of(true, found->second.marked));
}

void FileJournal::mark_crash() {
  for (auto& [stream, live] : live_) {
    live.suspect = live.marked;
    live.marked = true;
    set_state(stream, state_of(live.applied, true));
  }
}

void FileJournal::strike(std::uint32_t stream) {
  const auto found = live_.find(stream);
  if (found == live_.end()) return;
  set_state(stream, kStruck);
  live_bytes_ -= sizeof(EntryHeader) + found->second.length;
  live_.erase(found);
  shrink();
}

void FileJournal::shrink() {
  if (live_.empty() && size_ > kCutSize) {
    // The header first: cut entries must not be taken for new ones of a later process.
    if (!write_header()) return;
    if (::ftruncate(fd_.get(), sizeof(FileHeader)) == 0) size_ = sizeof(FileHeader);
  } else if (size_ > kRewriteSize && live_bytes_ < size_ / 2) {
    rewrite();
  }
}

// On failure (a full disk) the long file stays in use.
void FileJournal::rewrite() {
  FileHeader header;
  header.last_stream = last_stream_;
  header.torn = torn_;
  std::string content(bytes_of(header));
  std::map<std::uint32_t, Live> live;
  for (const auto& [stream, old] : live_) {
    std::string frame(old.length, '\0');
    const auto at = static_cast<off_t>(old.offset + sizeof(EntryHeader));
    if (::pread(fd_.get(), frame.data(), frame.size(), at) != static_cast<ssize_t>(frame.size())) {
      return;
    }
    Live moved = old;
    moved.offset = content.size();
    content += encode_entry(stream, frame, old.boottime_ns, state_of(old.applied, old.marked));
    live[stream] = moved;
  }
  if (!write_file_atomic(path_, content)) return;
  UniqueFd fd(::open(path_.c_str(), O_RDWR | O_NOFOLLOW | O_CLOEXEC));
  // The name must lead to the file that is written on: without a descriptor nothing would be.
  if (!fd) {
    log::error({}, "{}", Error::from_errno("open", path_).message);
    return;
  }
  fd_ = std::move(fd);
  live_ = std::move(live);
  size_ = content.size();
}

void FileJournal::set_torn(Direction direction, bool torn) {
  const std::uint32_t bit = direction == Direction::kInput ? 1U : 2U;
  torn_ = torn ? torn_ | bit : torn_ & ~bit;
  if (Result<> written = write_header(); !written) {
    log::error({}, "{}: {}", path_, written.error().message);
  }
}

std::vector<Journal::Entry> FileJournal::unanswered() {
  std::vector<Entry> entries;
  const std::uint64_t now = boottime_ns();
  for (const auto& [stream, live] : live_) {
    Entry entry;
    entry.frame.resize(live.length);
    const auto at = static_cast<off_t>(live.offset + sizeof(EntryHeader));
    const ssize_t n = ::pread(fd_.get(), entry.frame.data(), live.length, at);
    if (n != static_cast<ssize_t>(live.length)) continue;
    entry.age = std::chrono::nanoseconds(now > live.boottime_ns ? now - live.boottime_ns : 0);
    entry.applied = live.applied;
    entry.suspect = live.suspect;
    entries.push_back(std::move(entry));
  }
  return entries;
}

void FileJournal::discard() {
  if (::unlink(path_.c_str()) != 0 && errno != ENOENT) {
    log::warning({}, "{}", Error::from_errno("remove", path_).message);
  }
  if (at_discard_) at_discard_();
}

}  // namespace kuasar::ttrpc
