// A packet that somebody sends to the keeper: the message, and the process that it may describe.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "keeper/wire.h"

namespace {

namespace wire = kuasar::keeper::wire;

void require(bool truth) {
  if (!truth) std::abort();
}

void check_spawn(const char* body, std::size_t size) {
  static const char* strings[wire::kMaxStrings + 4];
  wire::SpawnView view{};
  if (!wire::decode_spawn(body, size, view, strings)) return;
  const auto inside = [&](const char* text) {
    require(text >= body && text + std::strlen(text) < body + size);
  };
  inside(view.program);
  inside(view.cwd);
  for (std::uint32_t i = 0; i < view.fixed.argc; ++i) inside(view.argv[i]);
  for (std::uint32_t i = 0; i < view.fixed.envc; ++i) inside(view.envp[i]);
  require(view.argv[view.fixed.argc] == nullptr && view.envp[view.fixed.envc] == nullptr);
  // The keeper adds one variable.
  require(view.envp + view.fixed.envc + 2 <= strings + wire::kMaxStrings + 4);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const char* bytes = reinterpret_cast<const char*>(data);
  check_spawn(bytes, size);
  wire::Message message{};
  if (!wire::decode(bytes, size, message)) return 0;
  require(message.body + message.header.body_size == bytes + size);
  check_spawn(message.body, message.header.body_size);
  static char again[wire::kMaxMessage];
  require(wire::encode(again, message.header, message.name, message.header.name_size, message.body,
                       message.header.body_size) == size);
  require(std::memcmp(again, bytes, size) == 0);
  return 0;
}
