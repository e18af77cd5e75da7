#include "worker/artifact.h"

#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <fstream>

#include "worker/digest.h"

namespace kuasar::wasm {
namespace {

constexpr std::string_view kMagic = "KSRAOT1\n";
constexpr std::size_t kDigest = 64;
constexpr std::size_t kStamp = 16;
constexpr std::size_t kHead = kMagic.size() + sizeof(std::uint64_t) + kDigest;
static_assert(kHead == 80);

// The first processor's, which the kernel has made the same for all: proc(5).
std::string instructions() {
  std::ifstream in("/proc/cpuinfo");
  std::string line;
  while (std::getline(in, line)) {
    if (line.rfind("flags", 0) == 0 || line.rfind("Features", 0) == 0) return line;
  }
  return "";
}

}  // namespace

std::string artifact_name(const std::string& digest, const std::string& stamp) {
  return digest + "." + stamp;
}

std::string make_stamp(const std::string& engine, const std::string& library_path,
                       std::string& why) {
  struct stat st {};
  if (::stat(library_path.c_str(), &st) != 0) {
    why = "stat " + library_path + ": " + std::strerror(errno);
    return "";
  }
  const std::string flags = instructions();
  if (flags.empty()) {
    why = "/proc/cpuinfo does not name the processor's instructions";
    return "";
  }
  std::string text = engine + "\n" + std::to_string(st.st_size) + "\n" +
                     std::to_string(st.st_mtim.tv_sec) + "." + std::to_string(st.st_mtim.tv_nsec);
  return sha256_of(text + "\n" + flags).substr(0, kStamp);
}

std::string seal(std::string_view code) {
  const std::uint64_t size = code.size();
  std::string file(kMagic);
  file.append(reinterpret_cast<const char*>(&size), sizeof size);
  file += sha256_of(code);
  file += code;
  return file;
}

std::optional<std::string_view> unseal(std::string_view file) {
  if (file.size() < kHead || file.substr(0, kMagic.size()) != kMagic) return std::nullopt;
  std::uint64_t size = 0;
  std::memcpy(&size, file.data() + kMagic.size(), sizeof size);
  const std::string_view digest = file.substr(kMagic.size() + sizeof size, kDigest);
  const std::string_view code = file.substr(kHead);
  if (code.size() != size || sha256_of(code) != digest) return std::nullopt;
  return code;
}

}  // namespace kuasar::wasm
