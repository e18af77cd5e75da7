// Bytes of a ttrpc connection: cutting them into frames, and parsing what the frames carry.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "ttrpc/frame.h"
#include "ttrpc/status.h"
#include "ttrpc/ttrpc.pb.h"

namespace {

using kuasar::ttrpc::FrameReader;

struct Seen {
  kuasar::ttrpc::FrameHeader header;
  bool oversized = false;
  std::string bytes;

  friend bool operator==(const Seen&, const Seen&) = default;
};

void require(bool truth) {
  if (!truth) std::abort();
}

void check_frame(const FrameReader::Frame& frame) {
  if (frame.oversized) {
    require(frame.header.length > kuasar::ttrpc::kMaxData && frame.bytes.empty());
    return;
  }
  require(frame.data().size() == frame.header.length);
  const auto again = kuasar::ttrpc::encode_frame(frame.header.type, frame.header.flags,
                                                 frame.header.stream, frame.data());
  require(again && *again == frame.bytes);
  const std::string data(frame.data());
  ttrpc::Request request;
  if (request.ParseFromString(data)) require(request.ByteSizeLong() <= 2 * data.size() + 64);
  ttrpc::Response response;
  if (response.ParseFromString(data) && response.has_status()) {
    const kuasar::Error error = kuasar::ttrpc::from_status(response.status());
    require(kuasar::ttrpc::to_status(error).code() > 0);
  }
}

// Feeds the input in pieces of one size; the last element tells whether it ended in an error.
std::vector<Seen> read_all(std::string_view input, std::size_t piece, bool& failed) {
  FrameReader reader;
  std::vector<Seen> seen;
  failed = false;
  for (std::size_t at = 0; at < input.size() && !failed; at += piece) {
    reader.feed(input.substr(at, piece));
    while (true) {
      const bool ready = reader.missing() == 0;
      const auto frame = reader.next();
      if (!frame) {
        failed = true;
        break;
      }
      require(!*frame || ready);
      if (!*frame) break;
      check_frame(**frame);
      seen.push_back({(*frame)->header, (*frame)->oversized, std::string((*frame)->bytes)});
    }
  }
  return seen;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  // The first byte chooses how the rest is chopped: whatever it is, the frames are the same.
  const std::size_t piece = data[0] + std::size_t{1};
  const std::string_view input(reinterpret_cast<const char*>(data) + 1, size - 1);
  bool failed_whole = false;
  bool failed_chopped = false;
  const std::vector<Seen> whole = read_all(input, input.size() + 1, failed_whole);
  const std::vector<Seen> chopped = read_all(input, piece, failed_chopped);
  require(whole == chopped && failed_whole == failed_chopped);
  const std::string printable = kuasar::ttrpc::printable_utf8(input);
  require(printable.size() <= input.size());
  require(kuasar::ttrpc::printable_utf8(printable) == printable);
  return 0;
}
