#include <dlfcn.h>

#include <cstdint>
#include <cstring>
#include <optional>
#include <string_view>

#include "worker/engine.h"

// Wasmtime through its C API (the releases with wasi_config_preopen_dir of four arguments, run with
// 50), which compiles a module with Cranelift when it is loaded: in the child, single-threaded.

namespace kuasar::wasm {
namespace {

// Of wasm.h, wasmtime/extern.h, func.h, instance.h and val.h.
struct Opaque;
struct Bytes {
  std::size_t size;
  char* data;
};
struct Pointers {
  std::size_t size;
  Opaque** data;
};
struct Function {
  std::uint64_t store;
  void* rest;
};
struct Instance {
  std::uint64_t store;
  std::size_t rest;
};
struct External {
  std::uint8_t kind;
  union {
    Function function;
    std::uint64_t largest[4];
  } of;
};
struct Value {
  std::uint8_t kind;
  union {
    std::int32_t i32;
    std::uint64_t largest[3];
  } of;
};
static_assert(sizeof(Value) == 32 && sizeof(External) == 40);
constexpr std::uint8_t kExternalFunction = 0;
constexpr std::int64_t kPage = 65536;
constexpr int kNoLimit = -1;
constexpr std::uint8_t kValueI32 = 0;
constexpr std::string_view kWasi = "wasi_snapshot_preview1";
constexpr std::string_view kProcExit = "proc_exit";

// wasmtime_func_callback_t. Returns a trap, or null.
using HostFunction = Opaque* (*)(void* data, Opaque* caller, const Value* in, std::size_t in_count,
                                 Value* out, std::size_t out_count);

struct Api {
  Opaque* (*wasm_config_new)();
  void (*wasmtime_config_parallel_compilation_set)(Opaque*, bool);
  void (*wasmtime_config_native_unwind_info_set)(Opaque*, bool);
  void (*wasmtime_config_memory_init_cow_set)(Opaque*, bool);
  Opaque* (*wasm_engine_new_with_config)(Opaque*);
  Opaque* (*wasmtime_store_new)(Opaque*, void*, void (*)(void*));
  Opaque* (*wasmtime_store_context)(Opaque*);
  void (*wasmtime_store_limiter)(Opaque*, std::int64_t, std::int64_t, std::int64_t, std::int64_t,
                                 std::int64_t);
  Opaque* (*wasmtime_linker_new)(Opaque*);
  Opaque* (*wasmtime_linker_define_wasi)(Opaque*);
  void (*wasmtime_linker_allow_shadowing)(Opaque*, bool);
  Opaque* (*wasmtime_linker_define_func)(Opaque*, const char*, std::size_t, const char*,
                                         std::size_t, const Opaque*, HostFunction, void*,
                                         void (*)(void*));
  Opaque* (*wasmtime_trap_new)(const char*, std::size_t);
  Opaque* (*wasm_valtype_new)(std::uint8_t);
  void (*wasm_valtype_vec_new)(Pointers*, std::size_t, Opaque* const*);
  void (*wasm_valtype_vec_new_empty)(Pointers*);
  Opaque* (*wasm_functype_new)(Pointers*, Pointers*);
  Opaque* (*wasmtime_linker_instantiate)(Opaque*, Opaque*, Opaque*, Instance*, Opaque**);
  Opaque* (*wasi_config_new)();
  bool (*wasi_config_set_argv)(Opaque*, std::size_t, const char* const*);
  bool (*wasi_config_set_env)(Opaque*, std::size_t, const char* const*, const char* const*);
  void (*wasi_config_inherit_stdin)(Opaque*);
  void (*wasi_config_inherit_stdout)(Opaque*);
  void (*wasi_config_inherit_stderr)(Opaque*);
  bool (*wasi_config_preopen_dir)(Opaque*, const char*, const char*, bool);
  Opaque* (*wasmtime_context_set_wasi)(Opaque*, Opaque*);
  Opaque* (*wasmtime_module_new)(Opaque*, const std::uint8_t*, std::size_t, Opaque**);
  Opaque* (*wasmtime_module_serialize)(Opaque*, Bytes*);
  Opaque* (*wasmtime_module_deserialize)(Opaque*, const std::uint8_t*, std::size_t, Opaque**);
  void (*wasmtime_module_imports)(Opaque*, Pointers*);
  Bytes* (*wasm_importtype_module)(Opaque*);
  Bytes* (*wasm_importtype_name)(Opaque*);
  bool (*wasmtime_instance_export_get)(Opaque*, const Instance*, const char*, std::size_t,
                                       External*);
  Opaque* (*wasmtime_func_type)(Opaque*, const Function*);
  Pointers* (*wasm_functype_results)(Opaque*);
  Opaque* (*wasmtime_func_call)(Opaque*, const Function*, const Value*, std::size_t, Value*,
                                std::size_t, Opaque**);
  void (*wasmtime_error_message)(Opaque*, Bytes*);
  void (*wasm_trap_message)(Opaque*, Bytes*);
};

Api api;

bool resolve(void* library, std::string& why) {
  const auto find = [&](const char* name, auto& function) {
    void* const found = ::dlsym(library, name);
    std::memcpy(&function, &found, sizeof found);
    if (found == nullptr) why = std::string("libwasmtime has no ") + name;
  };
#define KUASAR_FIND(name) find(#name, api.name)
  KUASAR_FIND(wasm_config_new);
  KUASAR_FIND(wasmtime_config_parallel_compilation_set);
  KUASAR_FIND(wasmtime_config_native_unwind_info_set);
  KUASAR_FIND(wasmtime_config_memory_init_cow_set);
  KUASAR_FIND(wasm_engine_new_with_config);
  KUASAR_FIND(wasmtime_store_new);
  KUASAR_FIND(wasmtime_store_context);
  KUASAR_FIND(wasmtime_store_limiter);
  KUASAR_FIND(wasmtime_linker_new);
  KUASAR_FIND(wasmtime_linker_define_wasi);
  KUASAR_FIND(wasmtime_linker_allow_shadowing);
  KUASAR_FIND(wasmtime_linker_define_func);
  KUASAR_FIND(wasmtime_trap_new);
  KUASAR_FIND(wasm_valtype_new);
  KUASAR_FIND(wasm_valtype_vec_new);
  KUASAR_FIND(wasm_valtype_vec_new_empty);
  KUASAR_FIND(wasm_functype_new);
  KUASAR_FIND(wasmtime_linker_instantiate);
  KUASAR_FIND(wasi_config_new);
  KUASAR_FIND(wasi_config_set_argv);
  KUASAR_FIND(wasi_config_set_env);
  KUASAR_FIND(wasi_config_inherit_stdin);
  KUASAR_FIND(wasi_config_inherit_stdout);
  KUASAR_FIND(wasi_config_inherit_stderr);
  KUASAR_FIND(wasi_config_preopen_dir);
  KUASAR_FIND(wasmtime_context_set_wasi);
  KUASAR_FIND(wasmtime_module_new);
  KUASAR_FIND(wasmtime_module_serialize);
  KUASAR_FIND(wasmtime_module_deserialize);
  KUASAR_FIND(wasmtime_module_imports);
  KUASAR_FIND(wasm_importtype_module);
  KUASAR_FIND(wasm_importtype_name);
  KUASAR_FIND(wasmtime_instance_export_get);
  KUASAR_FIND(wasmtime_func_type);
  KUASAR_FIND(wasm_functype_results);
  KUASAR_FIND(wasmtime_func_call);
  KUASAR_FIND(wasmtime_error_message);
  KUASAR_FIND(wasm_trap_message);
#undef KUASAR_FIND
  return why.empty();
}

std::string string_of(const Bytes& bytes) {
  std::string text(bytes.data == nullptr ? "" : std::string(bytes.data, bytes.size));
  while (!text.empty() && text.back() == '\0') text.pop_back();
  return text;
}

std::string message_of(Opaque* error) {
  Bytes message{};
  api.wasmtime_error_message(error, &message);
  return string_of(message);
}

// In one line: what failed, then "Caused by:" and why, numbered if there are more, each on its own.
std::string words(Opaque* error) {
  constexpr std::string_view kCause = "Caused by:";
  std::string text = message_of(error);
  if (const std::size_t at = text.find(kCause); at != std::string::npos) {
    text.erase(at, kCause.size());
    const std::size_t end = text.find_last_not_of(" \n", at - 1);
    if (end != std::string::npos) text.insert(end + 1, ":");
  }
  std::string line;
  for (const char c : text) {
    const bool space = c == '\n' || c == ' ';
    if (!space) line += c;
    if (space && !line.empty() && line.back() != ' ') line += ' ';
  }
  return line.substr(0, line.find_last_not_of(' ') + 1);
}

// "wasm trap: wasm `unreachable` instruction executed" and the like, without the backtrace of
// functions that have no names.
std::string trap_of(const std::string& text) {
  constexpr std::string_view kMark = "wasm trap: ";
  const std::size_t at = text.rfind(kMark);
  const std::size_t begin = at == std::string::npos ? 0 : at + kMark.size();
  return text.substr(begin, text.find('\n', begin) - begin);
}

class Wasmtime : public Engine {
 public:
  bool compiles() const override { return true; }

  std::string library_path() const override {
    return file_of(reinterpret_cast<const void*>(api.wasmtime_module_new));
  }

  std::string load(const Plan& plan, const std::string& bytes, std::string_view code) override {
    Opaque* const engine = make_engine();
    Opaque* error = nullptr;
    if (!code.empty()) error = deserialize(engine, code);
    if (module_ == nullptr) error = compile_with(engine, bytes);
    if (error != nullptr) return words(error);
    Pointers imports{};
    api.wasmtime_module_imports(module_, &imports);
    for (std::size_t i = 0; i < imports.size; ++i) {
      std::string why = refusal_of(string_of(*api.wasm_importtype_module(imports.data[i])),
                                   string_of(*api.wasm_importtype_name(imports.data[i])));
      if (!why.empty()) return why;
    }
    Opaque* const store = api.wasmtime_store_new(engine, nullptr, nullptr);
    context_ = api.wasmtime_store_context(store);
    if (plan.memory_pages > 0) {
      api.wasmtime_store_limiter(store, plan.memory_pages * kPage, kNoLimit, kNoLimit, kNoLimit,
                                 kNoLimit);
    }
    linker_ = api.wasmtime_linker_new(engine);
    error = api.wasmtime_linker_define_wasi(linker_);
    if (error == nullptr) error = replace_proc_exit();
    return error == nullptr ? "" : words(error);
  }

  std::string compile(const std::string& bytes, std::string& code) override {
    if (Opaque* const error = compile_with(make_engine(), bytes)) return words(error);
    Bytes serialized{};
    if (Opaque* const error = api.wasmtime_module_serialize(module_, &serialized)) {
      return words(error);
    }
    code.assign(serialized.data, serialized.size);
    return "";
  }

  GuestEnd run(const Plan& plan) override {
    if (Opaque* error = api.wasmtime_context_set_wasi(context_, wasi_config(plan))) {
      return {kTrapCode, words(error)};
    }
    Instance instance{};
    Opaque* trap = nullptr;
    Opaque* error = api.wasmtime_linker_instantiate(linker_, context_, module_, &instance, &trap);
    if (error != nullptr || trap != nullptr) return end_of(error, trap);
    // A library ("reactor") is set up before its functions are called.
    External function{};
    if (!plan.function.empty() && find(instance, "_initialize", function)) {
      const GuestEnd end = call(function);
      if (exit_status_ || end.code != 0) return end;
    }
    const std::string name = plan.function.empty() ? "_start" : plan.function;
    if (!find(instance, name, function)) {
      return {kTrapCode, "the module has no function \"" + name + "\""};
    }
    return call(function);
  }

 private:
  // The same for who compiles and who loads: the code says what it was made for.
  static Opaque* make_engine() {
    Opaque* const config = api.wasm_config_new();
    api.wasmtime_config_parallel_compilation_set(config, false);
    api.wasmtime_config_native_unwind_info_set(config, false);
    // A memfd for a module that is instantiated once.
    api.wasmtime_config_memory_init_cow_set(config, false);
    return api.wasm_engine_new_with_config(config);
  }

  Opaque* compile_with(Opaque* engine, const std::string& bytes) {
    return api.wasmtime_module_new(engine, reinterpret_cast<const std::uint8_t*>(bytes.data()),
                                   bytes.size(), &module_);
  }

  Opaque* deserialize(Opaque* engine, std::string_view code) {
    return api.wasmtime_module_deserialize(
        engine, reinterpret_cast<const std::uint8_t*>(code.data()), code.size(), &module_);
  }

  bool find(const Instance& instance, const std::string& name, External& function) const {
    return api.wasmtime_instance_export_get(context_, &instance, name.data(), name.size(),
                                            &function) &&
           function.kind == kExternalFunction;
  }

  GuestEnd call(const External& function) const {
    Opaque* const type = api.wasmtime_func_type(context_, &function.of.function);
    std::vector<Value> results(api.wasm_functype_results(type)->size);
    Opaque* trap = nullptr;
    Opaque* const error = api.wasmtime_func_call(context_, &function.of.function, nullptr, 0,
                                                 results.data(), results.size(), &trap);
    return end_of(error, trap);
  }

  // Wasmtime's own proc_exit traps on every status from 126 on.
  Opaque* replace_proc_exit() {
    api.wasmtime_linker_allow_shadowing(linker_, true);
    Opaque* const i32 = api.wasm_valtype_new(kValueI32);
    Pointers parameters{};
    Pointers results{};
    api.wasm_valtype_vec_new(&parameters, 1, &i32);
    api.wasm_valtype_vec_new_empty(&results);
    return api.wasmtime_linker_define_func(
        linker_, kWasi.data(), kWasi.size(), kProcExit.data(), kProcExit.size(),
        api.wasm_functype_new(&parameters, &results), proc_exit, this, nullptr);
  }

  // The trap unwinds the guest; end_of() does not report it as one.
  static Opaque* proc_exit(void* self, Opaque*, const Value* in, std::size_t, Value*, std::size_t) {
    static_cast<Wasmtime*>(self)->exit_status_ = in[0].of.i32;
    return api.wasmtime_trap_new(kProcExit.data(), kProcExit.size());
  }

  GuestEnd end_of(Opaque* error, Opaque* trap) const {
    if (exit_status_) return {*exit_status_ & 0xff, ""};
    if (error != nullptr) return {kTrapCode, trap_of(message_of(error))};
    if (trap == nullptr) return {};
    Bytes message{};
    api.wasm_trap_message(trap, &message);
    return {kTrapCode, trap_of(string_of(message))};
  }

  static Opaque* wasi_config(const Plan& plan) {
    Opaque* const config = api.wasi_config_new();
    std::vector<const char*> args;
    for (const std::string& word : plan.args) args.push_back(word.c_str());
    api.wasi_config_set_argv(config, args.size(), args.data());
    std::vector<std::string> names;
    std::vector<const char*> values;
    for (const std::string& variable : plan.env) {
      const std::size_t equals = variable.find('=');
      if (equals == std::string::npos) continue;
      names.push_back(variable.substr(0, equals));
      values.push_back(variable.c_str() + equals + 1);
    }
    std::vector<const char*> keys;
    for (const std::string& name : names) keys.push_back(name.c_str());
    api.wasi_config_set_env(config, keys.size(), keys.data(), values.data());
    api.wasi_config_inherit_stdin(config);
    api.wasi_config_inherit_stdout(config);
    api.wasi_config_inherit_stderr(config);
    for (const Plan::Preopen& preopen : plan.preopens) {
      api.wasi_config_preopen_dir(config, preopen.host.c_str(), preopen.guest.c_str(),
                                  !preopen.readonly);
    }
    return config;
  }

  Opaque* module_ = nullptr;
  Opaque* context_ = nullptr;
  Opaque* linker_ = nullptr;
  /// The argument of proc_exit, once the guest has called it.
  std::optional<std::int32_t> exit_status_;
};

}  // namespace

std::unique_ptr<Engine> load_wasmtime(const std::string& library, std::string& why) {
  void* const handle = ::dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    why = ::dlerror();
    return nullptr;
  }
  if (!resolve(handle, why)) return nullptr;
  return std::make_unique<Wasmtime>();
}

}  // namespace kuasar::wasm
