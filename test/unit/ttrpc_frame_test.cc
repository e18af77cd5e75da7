#include <catch2/catch_test_macros.hpp>
#include <random>
#include <vector>

#include "google/rpc/status.pb.h"
#include "ttrpc/frame.h"
#include "ttrpc/status.h"
#include "unit/ttrpc_fixture.h"

namespace kuasar::test {
namespace {

using ttrpc::FrameHeader;
using ttrpc::FrameReader;
using ttrpc::kHeaderSize;
using ttrpc::kMaxData;

struct Seen {
  FrameHeader header;
  bool oversized;
  std::string bytes;

  friend bool operator==(const Seen&, const Seen&) = default;
};

// Everything that the reader returns now.
std::vector<Seen> drain(FrameReader& reader) {
  std::vector<Seen> seen;
  while (true) {
    const auto frame = reader.next();
    REQUIRE(frame);
    if (!*frame) return seen;
    seen.push_back({(*frame)->header, (*frame)->oversized, std::string((*frame)->bytes)});
  }
}

std::string header_bytes(FrameHeader header) {
  std::string bytes;
  ttrpc::append_header(bytes, header);
  return bytes;
}

TEST_CASE("ttrpc frame: a header is ten big-endian bytes", "[ttrpc]") {
  const FrameHeader header{0x01020304, 0xa1a2a3a4, 2, 5};
  const std::string bytes = header_bytes(header);
  CHECK(bytes == std::string("\x01\x02\x03\x04\xa1\xa2\xa3\xa4\x02\x05", kHeaderSize));
  CHECK(ttrpc::decode_header(bytes) == header);
  for (std::size_t size = 0; size < kHeaderSize; ++size) {
    CHECK_FALSE(ttrpc::decode_header(std::string_view(bytes).substr(0, size)));
  }
}

TEST_CASE("ttrpc frame: what containerd sent is what we would send, byte for byte", "[ttrpc]") {
  for (const auto& [name, bytes] : all_captured()) {
    INFO(name);
    FrameReader reader;
    reader.feed(bytes);
    const std::vector<Seen> seen = drain(reader);
    REQUIRE(seen.size() == 1);
    CHECK_FALSE(reader.partial());
    const FrameHeader& header = seen[0].header;
    CHECK(header.flags == 0);
    CHECK(header.stream % 2 == 1);
    CHECK(header.length == bytes.size() - kHeaderSize);
    const std::string data = bytes.substr(kHeaderSize);
    if (header.type == ttrpc::kTypeRequest) {
      ::ttrpc::Request request;
      REQUIRE(request.ParseFromString(data));
      CHECK(request.service().starts_with("containerd."));
      REQUIRE(request.metadata_size() == 1);
      CHECK(request.metadata(0).key() == "containerd-namespace-ttrpc");
      CHECK(request.metadata(0).value() == "k8s.io");
      CHECK(ttrpc::encode_frame(header.type, 0, header.stream, request.SerializeAsString()) ==
            bytes);
    } else {
      REQUIRE(header.type == ttrpc::kTypeResponse);
      ::ttrpc::Response response;
      REQUIRE(response.ParseFromString(data));
      if (response.has_status()) {
        CHECK(response.payload().empty());
        // Through our own error type and back.
        const Error error = ttrpc::from_status(response.status());
        *response.mutable_status() = ttrpc::to_status(error);
      }
      CHECK(ttrpc::encode_frame(header.type, 0, header.stream, response.SerializeAsString()) ==
            bytes);
    }
  }
}

TEST_CASE("ttrpc frame: however the bytes are chopped, the frames are the same", "[ttrpc]") {
  std::string stream;
  std::vector<Seen> expected;
  for (const auto& [name, bytes] : all_captured()) {
    stream += bytes;
    expected.push_back({*ttrpc::decode_header(bytes), false, bytes});
  }
  const FrameHeader empty{0, 7, 3, 5};
  stream += header_bytes(empty);
  expected.push_back({empty, false, header_bytes(empty)});

  for (std::size_t piece = 1; piece < 64; ++piece) {
    FrameReader reader;
    std::vector<Seen> seen;
    for (std::size_t at = 0; at < stream.size(); at += piece) {
      reader.feed(std::string_view(stream).substr(at, piece));
      for (Seen& one : drain(reader)) seen.push_back(std::move(one));
    }
    INFO(piece);
    CHECK(seen == expected);
    CHECK_FALSE(reader.partial());
  }
  std::mt19937 random(20261124);
  for (int round = 0; round < 200; ++round) {
    FrameReader reader;
    std::vector<Seen> seen;
    for (std::size_t at = 0; at < stream.size();) {
      const std::size_t piece = std::uniform_int_distribution<std::size_t>(0, 4000)(random);
      reader.feed(std::string_view(stream).substr(at, piece));
      at += piece;
      for (Seen& one : drain(reader)) seen.push_back(std::move(one));
    }
    INFO("round " << round);
    CHECK(seen == expected);
  }
}

TEST_CASE("ttrpc frame: missing() never asks for a byte of the next frame", "[ttrpc]") {
  std::string stream;
  for (const auto& [name, bytes] : all_captured()) stream += bytes;
  FrameReader reader;
  std::size_t frames = 0;
  for (std::size_t at = 0; at < stream.size();) {
    const std::uint64_t missing = reader.missing();
    REQUIRE(missing > 0);
    reader.feed(std::string_view(stream).substr(at, static_cast<std::size_t>(missing)));
    at += static_cast<std::size_t>(missing);
    const bool whole = reader.missing() == 0;
    const std::vector<Seen> seen = drain(reader);
    CHECK(seen.size() == (whole ? 1 : 0));
    if (whole) CHECK_FALSE(reader.partial());
    frames += seen.size();
  }
  CHECK(frames == all_captured().size());
}

TEST_CASE("ttrpc frame: the limit is 4 MiB of data, and more is dropped, not kept", "[ttrpc]") {
  const std::string biggest(kMaxData, 'x');
  const Result<std::string> frame = ttrpc::encode_frame(1, 0, 1, biggest);
  REQUIRE(frame);
  CHECK(frame->size() == kMaxData + kHeaderSize);
  const Result<std::string> refused = ttrpc::encode_frame(1, 0, 1, biggest + 'x');
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == Code::kResourceExhausted);

  for (const std::size_t piece : {std::size_t{1000}, std::size_t{65536}, 2 * kMaxData}) {
    FrameReader reader;
    std::string stream = *frame;
    const FrameHeader over{kMaxData + 1, 3, 1, 0};
    stream += header_bytes(over) + biggest + 'x' + header_bytes({0, 5, 2, 0});
    std::vector<Seen> seen;
    for (std::size_t at = 0; at < stream.size(); at += piece) {
      reader.feed(std::string_view(stream).substr(at, piece));
      for (Seen& one : drain(reader)) seen.push_back(std::move(one));
    }
    REQUIRE(seen.size() == 3);
    CHECK(seen[0].bytes == *frame);
    CHECK(seen[1] == Seen{over, true, {}});
    CHECK(seen[2].header.stream == 5);
  }
}

TEST_CASE("ttrpc frame: malformed input is an error or nothing, never a frame", "[ttrpc]") {
  struct Row {
    const char* what;
    std::string bytes;
    bool error;
  };
  const std::vector<Row> rows = {
      {"nothing", "", false},
      {"one byte of a header", std::string(1, '\0'), false},
      {"nine bytes of a header", std::string(9, '\0'), false},
      {"a header without its data", header_bytes({1, 1, 1, 0}), false},
      {"one byte less than promised", header_bytes({5, 1, 1, 0}) + "abcd", false},
      {"a request of 4 GiB that has not come", header_bytes({0xffffffff, 1, 1, 0}) + "abc", false},
      {"HTTP/1.1", "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", true},
      {"gRPC's preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", true},
      {"a TLS hello", std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00", 12), true},
      {"all ones", std::string(64, '\xff'), true},
      {"an oversized frame of type 0", header_bytes({kMaxData + 1, 1, 0, 0}), true},
      {"an oversized frame of type 4", header_bytes({kMaxData + 1, 1, 4, 0}), true},
  };
  for (const Row& row : rows) {
    INFO(row.what);
    FrameReader reader;
    reader.feed(row.bytes);
    const auto frame = reader.next();
    CHECK(frame.has_value() == !row.error);
    if (frame) CHECK_FALSE(*frame);
    // The verdict stands, whatever follows.
    reader.feed(header_bytes({0, 1, 1, 0}));
    if (row.error) CHECK_FALSE(reader.next());
  }
}

TEST_CASE("ttrpc status: every code crosses both ways", "[ttrpc]") {
  for (int code = 1; code <= 16; ++code) {
    const google::rpc::Status status =
        ttrpc::to_status(Error::make(static_cast<Code>(code), "words"));
    CHECK(status.code() == code);
    CHECK(status.message() == "words");
    const Error back = ttrpc::from_status(status);
    CHECK(back.code == static_cast<Code>(code));
    CHECK(back.message == "words");
  }
  CHECK(ttrpc::to_status(Error{Code::kOk, 0, "x"}).code() == 2);
  google::rpc::Status strange;
  for (const int code : {17, 99, -1, 1 << 30}) {
    strange.set_code(code);
    CHECK(ttrpc::from_status(strange).code == Code::kUnknown);
  }
}

TEST_CASE("ttrpc status: a message is valid UTF-8 and bounded", "[ttrpc]") {
  CHECK(ttrpc::printable_utf8("grün €𝄞") == "grün €𝄞");
  CHECK(ttrpc::printable_utf8("a\xff"
                              "b") == "a?b");
  CHECK(ttrpc::printable_utf8("\xc3") == "?");
  CHECK(ttrpc::printable_utf8("\xc0\xaf") == "??");
  CHECK(ttrpc::printable_utf8("\xed\xa0\x80") == "???");
  CHECK(ttrpc::printable_utf8("\xf4\x90\x80\x80") == "????");
  CHECK(ttrpc::printable_utf8("\xe2\x82") == "??");
  std::string long_text;
  while (long_text.size() < 3 * ttrpc::kMaxStatusMessage) long_text += "€";
  const std::string cut = ttrpc::to_status(Error{Code::kInternal, 0, long_text}).message();
  CHECK(cut.size() <= ttrpc::kMaxStatusMessage + 3);
  CHECK(cut.ends_with("€..."));
}

}  // namespace
}  // namespace kuasar::test
