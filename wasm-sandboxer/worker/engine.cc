#include "worker/engine.h"

namespace kuasar::wasm {

std::unique_ptr<Engine> load_engine(const std::string& name, const std::string& library,
                                    std::string& why) {
  if (name == "wasmedge") return load_wasmedge(library, why);
  why = "there is no engine \"" + name + "\"; there is wasmedge";
  return nullptr;
}

}  // namespace kuasar::wasm
