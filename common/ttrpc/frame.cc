#include "ttrpc/frame.h"

#include <algorithm>

namespace kuasar::ttrpc {
namespace {

std::uint32_t load_be32(std::string_view bytes, std::size_t at) {
  std::uint32_t value = 0;
  for (std::size_t i = 0; i < 4; ++i) {
    value = (value << 8) | static_cast<unsigned char>(bytes[at + i]);
  }
  return value;
}

void append_be32(std::string& out, std::uint32_t value) {
  for (int shift = 24; shift >= 0; shift -= 8) {
    out.push_back(static_cast<char>((value >> shift) & 0xff));
  }
}

}  // namespace

bool known_type(std::uint8_t type) {
  return type == kTypeRequest || type == kTypeResponse || type == kTypeData;
}

std::optional<FrameHeader> decode_header(std::string_view bytes) {
  if (bytes.size() < kHeaderSize) return std::nullopt;
  FrameHeader header;
  header.length = load_be32(bytes, 0);
  header.stream = load_be32(bytes, 4);
  header.type = static_cast<std::uint8_t>(bytes[8]);
  header.flags = static_cast<std::uint8_t>(bytes[9]);
  return header;
}

void append_header(std::string& out, const FrameHeader& header) {
  append_be32(out, header.length);
  append_be32(out, header.stream);
  out.push_back(static_cast<char>(header.type));
  out.push_back(static_cast<char>(header.flags));
}

Result<std::string> encode_frame(std::uint8_t type, std::uint8_t flags, std::uint32_t stream,
                                 std::string_view data) {
  if (data.size() > kMaxData) {
    return fail(Code::kResourceExhausted, "ttrpc message of {} bytes is over the limit of {}",
                data.size(), kMaxData);
  }
  std::string frame;
  frame.reserve(kHeaderSize + data.size());
  append_header(frame, {static_cast<std::uint32_t>(data.size()), stream, type, flags});
  frame.append(data);
  return frame;
}

void FrameReader::feed(std::string_view bytes) {
  // Views handed out end here, so the consumed front may go.
  buffer_.erase(0, start_);
  start_ = 0;
  if (dropping_) {
    const std::uint64_t dropped = std::min<std::uint64_t>(to_drop_, bytes.size());
    to_drop_ -= dropped;
    bytes.remove_prefix(static_cast<std::size_t>(dropped));
  }
  buffer_.append(bytes);
}

Result<std::optional<FrameReader::Frame>> FrameReader::next() {
  if (failure_) return fail(*failure_);
  if (start_ == buffer_.size() && start_ > 0) {
    // An idle connection, which there is one of for each pod, keeps no memory for frames.
    std::string().swap(buffer_);
    start_ = 0;
  }
  if (!dropping_) {
    const std::optional<FrameHeader> header = decode_header(rest());
    if (!header) return std::nullopt;
    if (header->length <= kMaxData) {
      const std::size_t size = kHeaderSize + header->length;
      if (rest().size() < size) return std::nullopt;
      const Frame frame{*header, false, rest().substr(0, size)};
      start_ += size;
      return frame;
    }
    if (!known_type(header->type)) {
      failure_ =
          Error::make(Code::kInvalidArgument, "not a ttrpc frame: type {:#x} with a length of {}",
                      header->type, header->length);
      return fail(*failure_);
    }
    dropping_ = header;
    start_ += kHeaderSize;
    const std::size_t dropped = std::min<std::size_t>(header->length, rest().size());
    start_ += dropped;
    to_drop_ = header->length - dropped;
  }
  if (to_drop_ > 0) return std::nullopt;
  const Frame frame{*dropping_, true, {}};
  dropping_.reset();
  return frame;
}

std::optional<std::uint64_t> FrameReader::frame_size() const {
  if (dropping_) return to_drop_;
  const std::optional<FrameHeader> header = decode_header(rest());
  if (!header) return std::nullopt;
  return std::uint64_t{kHeaderSize} + header->length;
}

std::uint64_t FrameReader::missing() const {
  const std::uint64_t have = dropping_ ? 0 : rest().size();
  const std::uint64_t size = frame_size().value_or(kHeaderSize);
  return size > have ? size - have : 0;
}

bool FrameReader::partial() const {
  return dropping_.has_value() || !rest().empty();
}

}  // namespace kuasar::ttrpc
