#include <catch2/catch_test_macros.hpp>
#include <cstring>
#include <string>
#include <string_view>

#include "keeper/keeper_call.h"
#include "keeper/wire.h"

namespace kuasar::keeper {
namespace {

using namespace std::string_view_literals;

std::string packet(wire::Header header, std::string_view name, std::string_view body) {
  static char out[wire::kMaxMessage];
  const std::size_t size = wire::encode(out, header, name, body);
  return {out, size};
}

wire::Header header(std::uint16_t type, std::uint32_t sequence = 0, std::int32_t error = 0) {
  wire::Header made{};
  made.version = wire::kVersion;
  made.type = type;
  made.sequence = sequence;
  made.error = error;
  return made;
}

bool decodes(std::string_view bytes) {
  wire::Message message{};
  return wire::decode(bytes.data(), bytes.size(), message);
}

TEST_CASE("keeper wire: a message byte by byte") {
  const std::string bytes = packet(header(wire::kHold, 0x01020304, -2), "a/1", "xy");
  CHECK(bytes ==
        "KERP\x02\0\x04\0\x04\x03\x02\x01\xfe\xff\xff\xff\x03\0\0\0\x02\0\0\0"
        "a/1xy"sv);
  wire::Message message{};
  REQUIRE(wire::decode(bytes.data(), bytes.size(), message));
  CHECK(message.header.type == wire::kHold);
  CHECK(message.header.version == wire::kVersion);
  CHECK(message.header.sequence == 0x01020304);
  CHECK(message.header.error == -2);
  CHECK(message.name == "a/1");
  CHECK(message.body == "xy");
}

TEST_CASE("keeper wire: what is not exactly one message is refused") {
  const std::string good = packet(header(wire::kHold), "name", "body");
  REQUIRE(decodes(good));
  for (std::size_t size = 0; size < good.size(); ++size) CHECK_FALSE(decodes(good.substr(0, size)));
  CHECK_FALSE(decodes(good + "x"));
  // Every bit of the magic and of both sizes counts.
  for (std::size_t at = 0; at < sizeof(wire::Header); ++at) {
    const bool counts = at < 4 || at >= 16;
    for (int bit = 0; bit < 8 && counts; ++bit) {
      std::string bad = good;
      bad[at] = static_cast<char>(bad[at] ^ (1 << bit));
      CHECK_FALSE(decodes(bad));
    }
  }
  for (const char c : {'\0', ' ', '\n', '\x7f', '\xff'}) {
    CHECK_FALSE(decodes(packet(header(wire::kHold), std::string("na") + c, "")));
  }
  CHECK(decodes(packet(header(wire::kHold), std::string(wire::kMaxName, 'x'), "")));
  CHECK(packet(header(wire::kHold), std::string(wire::kMaxName + 1, 'x'), "").empty());
  const std::size_t room = wire::kMaxMessage - sizeof(wire::Header);
  CHECK(decodes(packet(header(wire::kHold), "", std::string(room, 'x'))));
  CHECK(packet(header(wire::kHold), "", std::string(room + 1, 'x')).empty());
}

// With descriptor 7, and 8 where two come.
bool decodes_spawn(const std::string& body, wire::SpawnPlan& plan, int fd_count = 1) {
  const int fds[] = {7, 8};
  return wire::decode_spawn(body, fds, fd_count, plan);
}
bool decodes_spawn(const std::string& body, int fd_count = 1) {
  static wire::SpawnPlan plan;
  return decodes_spawn(body, plan, fd_count);
}

SpawnArguments arguments() {
  SpawnArguments made;
  made.fixed.fd_count = 1;
  made.fixed.child_fds[0] = 3;
  made.fixed.file_limit_soft = 1000;
  made.fixed.file_limit_hard = 2000;
  made.fixed.flags = wire::kNewMountNamespace | wire::kLeavesOrphans;
  made.program = "/bin/p";
  made.cwd = "/tmp";
  made.argv = {"p", "", "x y"};
  made.env = {"A=1"};
  return made;
}

TEST_CASE("keeper wire: a connection's name fits whatever its listener is called") {
  CHECK(wire::valid_listener("listen/task"));
  CHECK_FALSE(wire::valid_listener("task"));
  const std::string longest(wire::kMaxName - std::string("/18446744073709551615").size(), 'x');
  CHECK(wire::valid_listener(wire::kListenPrefix + longest));
  CHECK_FALSE(wire::valid_listener(wire::kListenPrefix + longest + "x"));
}

TEST_CASE("keeper wire: a process comes back as it was") {
  const Result<std::string> body = encode_spawn(arguments());
  REQUIRE(body);
  CHECK(std::string_view(*body).substr(sizeof(wire::Spawn)) == "/bin/p\0/tmp\0p\0\0x y\0A=1\0"sv);
  static wire::SpawnPlan plan;
  REQUIRE(decodes_spawn(*body, plan));
  const os::ChildPlan& child = plan.child;
  CHECK(child.file == "/bin/p"sv);
  CHECK(child.cwd == "/tmp"sv);
  CHECK(child.argv[0] == "p"sv);
  CHECK(child.argv[1] == ""sv);
  CHECK(child.argv[2] == "x y"sv);
  CHECK(child.argv[3] == nullptr);
  CHECK(child.envp[0] == "A=1"sv);
  CHECK(child.envp[1] == nullptr);
  REQUIRE(child.fd_count == 1);
  CHECK(child.fds[0].parent_fd == 7);
  CHECK(child.fds[0].child_fd == 3);
  REQUIRE(child.file_limit != nullptr);
  CHECK(child.file_limit->rlim_cur == 1000);
  CHECK(child.file_limit->rlim_max == 2000);
  CHECK(child.new_mount_namespace);
  CHECK_FALSE(child.new_pid_namespace);
  CHECK(plan.flags == (wire::kNewMountNamespace | wire::kLeavesOrphans));

  SpawnArguments no_cwd = arguments();
  no_cwd.cwd.clear();
  const std::string without = encode_spawn(no_cwd).value();
  REQUIRE(decodes_spawn(without, plan));
  CHECK(child.cwd == "/"sv);
}

TEST_CASE("keeper wire: a malformed process is refused") {
  const std::string good = encode_spawn(arguments()).value();
  for (std::size_t size = 0; size < good.size(); ++size) {
    CHECK_FALSE(decodes_spawn(good.substr(0, size)));
  }
  CHECK_FALSE(decodes_spawn(good + '\0'));
  CHECK_FALSE(decodes_spawn(good, 0));
  CHECK_FALSE(decodes_spawn(good, 2));
  const auto with = [&](auto change) {
    std::string body = good;
    wire::Spawn fixed{};
    std::memcpy(&fixed, body.data(), sizeof fixed);
    change(fixed);
    std::memcpy(body.data(), &fixed, sizeof fixed);
    return decodes_spawn(body);
  };
  CHECK(with([](wire::Spawn&) {}));
  CHECK_FALSE(with([](wire::Spawn& s) { s.argc = 0; }));
  CHECK_FALSE(with([](wire::Spawn& s) { s.argc = 4; }));
  CHECK_FALSE(with([](wire::Spawn& s) { s.argc = ~0U; }));
  CHECK_FALSE(with([](wire::Spawn& s) { s.envc = ~0U; }));
  CHECK_FALSE(with([](wire::Spawn& s) { s.fd_count = wire::kMaxFds + 1; }));
  CHECK_FALSE(with([](wire::Spawn& s) { s.child_fds[0] = -1; }));
  CHECK_FALSE(with([](wire::Spawn& s) { s.child_fds[0] = wire::kMaxChildFd + 1; }));
  SpawnArguments many = arguments();
  many.env.assign(wire::kMaxStrings, "");
  CHECK(encode_spawn(many).error().code == Code::kInvalidArgument);
  many.env.resize(wire::kMaxStrings - many.argv.size());
  CHECK(decodes_spawn(encode_spawn(many).value()));
  many.env = {std::string(wire::kMaxMessage, 'x')};
  CHECK(encode_spawn(many).error().code == Code::kInvalidArgument);
}

}  // namespace
}  // namespace kuasar::keeper
