#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
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

  /// The file of its library.
  virtual std::string library_path() const = 0;

  /// Parses and validates a module. Empty, or in words why it is refused. `bytes` is image content;
  /// `code` is what compile() made of it, or empty: code that is not usable is as none.
  virtual std::string load(const Plan& plan, const std::string& bytes, std::string_view code) = 0;
  /// Native code of a module, for load(). Empty, or why there is none. May write files in the
  /// working directory.
  virtual std::string compile(const std::string& bytes, std::string& code) = 0;
  /// Instantiates what was loaded, runs it to its end.
  virtual GuestEnd run(const Plan& plan) = 0;
};

/// In words, why a module that imports this is refused; empty: it is served, or the engine says
/// what is missing.
std::string refusal_of(const std::string& module, const std::string& name);

/// dlopen()s the engine's library. Null with `why` in words. Names: "wasmedge", "wasmtime".
std::unique_ptr<Engine> load_engine(const std::string& name, const std::string& library,
                                    std::string& why);
/// The file that a symbol of a loaded library is from.
std::string file_of(const void* symbol);
std::unique_ptr<Engine> load_wasmedge(const std::string& library, std::string& why);
std::unique_ptr<Engine> load_wasmtime(const std::string& library, std::string& why);

}  // namespace kuasar::wasm
