// A packet that somebody sends to the keeper: the message, and the process that it may describe.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "keeper/wire.h"

namespace {

namespace wire = kuasar::keeper::wire;

void require(bool truth) {
  if (!truth) std::abort();
}

void check_spawn(std::string_view body) {
  static wire::SpawnPlan plan;
  const int fds[wire::kMaxFds] = {};
  for (int fd_count = 0; fd_count <= static_cast<int>(wire::kMaxFds); ++fd_count) {
    if (!wire::decode_spawn(body, fds, fd_count, plan)) continue;
    const auto inside = [&](const char* text) {
      require(text >= body.data() && text + std::strlen(text) < body.data() + body.size());
    };
    inside(plan.child.file);
    char* const* string = plan.child.argv;
    while (*string != nullptr) inside(*string++);
    require(plan.child.envp == string + 1);
    for (string = plan.child.envp; *string != nullptr;) inside(*string++);
    require(string < plan.strings + wire::kMaxStrings + 2);
    require(plan.child.fd_count == fd_count);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const char* bytes = reinterpret_cast<const char*>(data);
  check_spawn({bytes, size});
  wire::Message message{};
  if (!wire::decode(bytes, size, message)) return 0;
  require(message.body.data() + message.body.size() == bytes + size);
  check_spawn(message.body);
  static char again[wire::kMaxMessage];
  require(wire::encode(again, message.header, message.name, message.body) == size);
  require(std::memcmp(again, bytes, size) == 0);
  return 0;
}
