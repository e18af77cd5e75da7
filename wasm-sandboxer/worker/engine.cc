#include "worker/engine.h"

#include <dlfcn.h>

namespace kuasar::wasm {

std::unique_ptr<Engine> load_engine(const std::string& name, const std::string& library,
                                    std::string& why) {
  if (name == "wasmedge") return load_wasmedge(library, why);
  if (name == "wasmtime") return load_wasmtime(library, why);
  why = "there is no engine \"" + name + "\"; there are wasmedge and wasmtime";
  return nullptr;
}

std::string file_of(const void* symbol) {
  Dl_info info{};
  return ::dladdr(symbol, &info) != 0 && info.dli_fname != nullptr ? info.dli_fname : "";
}

std::string refusal_of(const std::string& module, const std::string& name) {
  if (module.rfind("wasi_ephemeral_nn", 0) == 0 || module.rfind("wasi_nn", 0) == 0) {
    return "it imports " + module + ": wasi-nn is not supported";
  }
  constexpr const char* kSockets[] = {"sock_open",    "sock_bind",       "sock_listen",
                                      "sock_connect", "sock_recv_from",  "sock_send_to",
                                      "sock_accept",  "sock_getaddrinfo"};
  for (const char* socket : kSockets) {
    if (name.rfind(socket, 0) == 0) {
      return "it imports " + module + "." + name + ": WASI sockets are not supported";
    }
  }
  return "";
}

}  // namespace kuasar::wasm
