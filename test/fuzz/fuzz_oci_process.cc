// An OCI Process of Task.Exec, a container's config.json under another command, and the resources
// of Task.Update: whatever comes in, an error or text that a runtime may get.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "oci/process.h"
#include "oci/resources.h"

namespace {

void must(bool truth) {
  if (!truth) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace kuasar;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  for (const bool terminal : {false, true}) {
    const Result<std::string> process = oci::exec_process(text, terminal);
    // What goes to the runtime can be read again, and is the same then.
    if (process) must(oci::exec_process(*process, terminal).has_value());
  }
  (void)oci::parse_process(text);
  oci::Command command;
  command.args = {"sh"};
  const Result<std::string> like = oci::process_like(text, command);
  if (like) must(!like->empty());
  (void)oci::parse_resources(text);
  return 0;
}
