#include "support/process_figures.h"

#include <fmt/format.h>

#include <filesystem>
#include <iterator>
#include <stdexcept>

namespace kuasar::test {
namespace {

template <typename T>
T need(Result<T> result) {
  if (!result) throw std::runtime_error(result.error().message);
  return std::move(*result);
}

}  // namespace

os::MemoryUse memory(pid_t pid) {
  return need(os::memory_of(pid));
}

double cpu_seconds(pid_t pid) {
  return need(os::cpu_seconds_of(pid));
}

int open_descriptors(pid_t pid) {
  const std::filesystem::directory_iterator all(fmt::format("/proc/{}/fd", pid));
  return static_cast<int>(std::distance(begin(all), end(all)));
}

}  // namespace kuasar::test
