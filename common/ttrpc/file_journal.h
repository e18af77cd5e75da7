#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/unique_fd.h"
#include "ttrpc/journal.h"

namespace kuasar::ttrpc {

/// The journal of one connection in a file of its own on the state tmpfs (no fsync: it need not
/// outlive the machine). An entry is appended whole, then changes its state in place, so that an
/// answer can be noted on a full disk too. A request that does not fit the disk any more is served
/// all the same: it is lost only if the daemon dies before it has answered; said once per journal.
/// So is a connection that comes when there is no room for a journal at all.
///
/// Layout, in the machine's byte order: a header of 32 bytes {magic, last stream, torn flags}, then
/// entries {state, stream, length, crc32, CLOCK_BOOTTIME ns} followed by `length` frame bytes. What
/// comes after the first damaged entry is a crash's half-written tail: its request is still in the
/// socket.
class FileJournal : public Journal {
 public:
  /// Opens or makes the file (0600). Content that no journal of this version has is
  /// kFailedPrecondition, in words: the connection cannot be continued.
  /// `at_discard` is called when the connection has ended for good.
  /// With `crashed` the process that wrote it crashed (base/crash_mark.h): what it had not answered
  /// is marked, and suspect when it was marked before.
  static Result<std::unique_ptr<FileJournal>> open(const std::string& path,
                                                   std::function<void()> at_discard = {},
                                                   bool crashed = false);

  Result<> append(std::uint32_t stream, std::string_view frame) override;
  void strike(std::uint32_t stream) override;
  void mark_applied(std::uint32_t stream) override;
  void set_torn(Direction direction, bool torn) override;
  std::vector<Entry> unanswered() override;
  std::uint32_t last_stream() const override { return last_stream_; }
  /// Removes the file, then tells whoever opened it.
  void discard() override;

  /// An earlier process died inside a frame: the connection is lost.
  bool torn() const { return torn_at_open_; }

 private:
  struct Live {
    std::uint64_t offset = 0;
    std::uint32_t length = 0;
    std::uint64_t boottime_ns = 0;
    bool applied = false;
    /// A process has crashed while it was under way.
    bool marked = false;
    bool suspect = false;
  };

  FileJournal(std::string path, UniqueFd fd);
  Result<> read_back();
  Result<> read_entries(std::string_view content);
  Result<> write_header();
  void mark_crash();
  void set_state(std::uint32_t stream, std::uint32_t state);
  void shrink();
  void rewrite();

  std::string path_;
  UniqueFd fd_;
  std::function<void()> at_discard_;
  std::uint64_t size_ = 0;
  std::uint32_t last_stream_ = 0;
  std::uint32_t torn_ = 0;
  bool torn_at_open_ = false;
  /// The file has its header; without one it is empty.
  bool headed_ = false;
  bool complained_ = false;
  /// By stream, which is the order of arrival.
  std::map<std::uint32_t, Live> live_;
  std::uint64_t live_bytes_ = 0;
};

}  // namespace kuasar::ttrpc
