#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/error.h"

namespace kuasar::ttrpc {

/// Every message is a 10-byte big-endian header and its data (ttrpc 1.2, channel.go).
inline constexpr std::size_t kHeaderSize = 10;
/// The most data that a frame may carry (ttrpc 1.2, channel.go: messageLengthMax).
inline constexpr std::size_t kMaxData = 4U << 20;

/// Values of FrameHeader::type; any other is to be ignored (ttrpc 1.2, server.go).
inline constexpr std::uint8_t kTypeRequest = 1;
inline constexpr std::uint8_t kTypeResponse = 2;
inline constexpr std::uint8_t kTypeData = 3;

/// Bits of FrameHeader::flags; all zero for unary calls.
inline constexpr std::uint8_t kFlagRemoteClosed = 1;
inline constexpr std::uint8_t kFlagRemoteOpen = 2;
inline constexpr std::uint8_t kFlagNoData = 4;

struct FrameHeader {
  std::uint32_t length = 0;
  std::uint32_t stream = 0;
  std::uint8_t type = 0;
  std::uint8_t flags = 0;

  friend bool operator==(const FrameHeader&, const FrameHeader&) = default;
};

/// True for the three types that the protocol defines.
bool known_type(std::uint8_t type);

/// The header in the first kHeaderSize bytes; nothing if there are fewer.
std::optional<FrameHeader> decode_header(std::string_view bytes);
/// Appends the ten bytes of a header.
void append_header(std::string& out, const FrameHeader& header);
/// A whole frame; kResourceExhausted when the data is longer than kMaxData.
Result<std::string> encode_frame(std::uint8_t type, std::uint8_t flags, std::uint32_t stream,
                                 std::string_view data);

/// Cuts a byte stream into frames, however it is chopped. Holds at most one frame plus what one
/// feed() brings; the data of a frame over kMaxData is dropped as it comes.
class FrameReader {
 public:
  struct Frame {
    FrameHeader header;
    /// The data was longer than kMaxData and has been dropped.
    bool oversized = false;
    /// Header and data; empty when oversized. Valid until the next feed() or next().
    std::string_view bytes;

    std::string_view data() const { return bytes.empty() ? bytes : bytes.substr(kHeaderSize); }
  };

  void feed(std::string_view bytes);
  /// The next whole frame, or nothing until more bytes are fed. An error (a length over kMaxData
  /// with a type that ttrpc does not know: the peer speaks something else) is final.
  Result<std::optional<Frame>> next();

  /// Bytes from the front of what is buffered to the end of the frame that starts there; nothing
  /// when its header is not complete. Includes what is still to come.
  std::optional<std::uint64_t> frame_size() const;
  /// Bytes of the frame that starts at the front, or of its header while that is incomplete, that
  /// are still to be fed; 0 when next() will return a frame.
  std::uint64_t missing() const;
  /// True in the middle of a frame.
  bool partial() const;

 private:
  std::string_view rest() const { return std::string_view(buffer_).substr(start_); }

  std::string buffer_;
  /// Where the first frame that next() has not returned begins.
  std::size_t start_ = 0;
  /// The oversized frame whose data is being dropped, and how much of it is to come.
  std::optional<FrameHeader> dropping_;
  std::uint64_t to_drop_ = 0;
  std::optional<Error> failure_;
};

}  // namespace kuasar::ttrpc
