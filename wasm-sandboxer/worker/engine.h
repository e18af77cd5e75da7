#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "worker/plan.h"

namespace kuasar::wasm {

/// How a guest ended.
struct GuestEnd {
  /// Of proc_exit, or 0; kTrapCode for a trap.
  int code = 0;
  /// Of a trap.
  std::string trap;
};
/// As a native process that aborts: 128 + SIGABRT.
inline constexpr int kTrapCode = 134;

/// A WebAssembly engine. It is loaded in the zygote, which parses nothing; everything else happens
/// in the confined child, once: load(), then run(). Single-threaded.
class Engine {
 public:
  virtual ~Engine() = default;

  /// Makes native code of a module and has threads, so that its calls are of another kind
  /// (seccomp.h).
  virtual bool compiles() const { return false; }

  /// Parses and validates a module. Empty, or in words why it is refused. `bytes` is image content.
  virtual std::string load(const Plan& plan, const std::string& bytes) = 0;
  /// Instantiates what was loaded, runs it to its end.
  virtual GuestEnd run(const Plan& plan) = 0;
};

/// In words, why a module that imports this is refused; empty: it is served, or the engine says
/// what is missing.
std::string refusal_of(const std::string& module, const std::string& name);

/// dlopen()s the engine's library. Null with `why` in words. Names: "wasmedge", "wasmtime".
std::unique_ptr<Engine> load_engine(const std::string& name, const std::string& library,
                                    std::string& why);
std::unique_ptr<Engine> load_wasmedge(const std::string& library, std::string& why);
std::unique_ptr<Engine> load_wasmtime(const std::string& library, std::string& why);

}  // namespace kuasar::wasm
