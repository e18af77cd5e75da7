#include "worker/digest.h"

#include <dlfcn.h>

#include <cstddef>
#include <cstring>

namespace kuasar::wasm {
namespace {

// OpenSSL's own soname since 3.0; gRPC brings it to every machine that runs a sandboxer.
constexpr const char* kLibrary = "libcrypto.so.3";
constexpr std::size_t kSize = 32;

// SHA256_CTX of openssl/sha.h, 112 bytes.
struct Context {
  alignas(16) unsigned char bytes[128];
};

struct Api {
  int (*init)(Context*);
  int (*update)(Context*, const void*, std::size_t);
  int (*final)(unsigned char*, Context*);
};

Api api;

}  // namespace

bool load_digest(std::string& why) {
  void* const library = ::dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    why = ::dlerror();
    return false;
  }
  const auto find = [&](const char* name, auto& function) {
    void* const found = ::dlsym(library, name);
    std::memcpy(&function, &found, sizeof found);
    if (found == nullptr) why = std::string(kLibrary) + " has no " + name;
  };
  find("SHA256_Init", api.init);
  find("SHA256_Update", api.update);
  find("SHA256_Final", api.final);
  return why.empty();
}

std::string sha256_of(std::string_view bytes) {
  Context context;
  unsigned char digest[kSize];
  api.init(&context);
  api.update(&context, bytes.data(), bytes.size());
  api.final(digest, &context);
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const unsigned char byte : digest) {
    text += kDigits[byte >> 4];
    text += kDigits[byte & 0xf];
  }
  return text;
}

}  // namespace kuasar::wasm
