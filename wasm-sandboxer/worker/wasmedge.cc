#include <dlfcn.h>
#include <sys/random.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>

#include "worker/engine.h"

// WasmEdge through its C API, 0.14 to 0.17 (libwasmedge.so.0). No native code of an image is ever
// run: modules are interpreted, or run as code that a confined process has compiled for our own
// cache, which WasmEdge packs into a module ("universal"). The file loader is not used: it
// dlopen()s ELF files.

namespace kuasar::wasm {
namespace {

// Of wasmedge/wasmedge_basic.h, wasmedge_value.h and enum_configure.h, alike in these versions.
struct String {
  std::uint32_t length;
  const char* text;
};
struct Status {
  std::uint32_t code;
};
struct ValueType {
  std::uint8_t data[8];
};
struct alignas(16) Value {
  std::uint32_t i32;
  std::uint8_t rest[12];
  ValueType type;
};
static_assert(sizeof(Value) == 32);
struct Context;
using HostFunction = Status (*)(void* data, const Context* frame, const Value* in, Value* out);
constexpr int kWasi = 0;
constexpr int kInterpreter = 0;
// Of enum WasmEdge_RunMode, CompilerOptimizationLevel, CompilerOutputFormat and Proposal.
constexpr int kAot = 2;
constexpr int kO1 = 1;
constexpr int kUniversal = 1;
constexpr int kMemory64 = 15;
// What the guest gets from WASI's random_get when the kernel has none (__WASI_ERRNO_IO), or its
// buffer is not in its memory (__WASI_ERRNO_FAULT).
constexpr std::uint32_t kErrnoFault = 21;
constexpr std::uint32_t kErrnoIo = 29;

struct Api {
  Context* (*ConfigureCreate)();
  void (*ConfigureAddHostRegistration)(Context*, int);
  void (*ConfigureSetMaxMemoryPage)(Context*, std::uint32_t);
  void (*ConfigureSetForceInterpreter)(Context*, bool);
  void (*ConfigureRemoveProposal)(Context*, int);
  void (*ConfigureCompilerSetOptimizationLevel)(Context*, int);
  void (*ConfigureCompilerSetOutputFormat)(Context*, int);
  Context* (*CompilerCreate)(const Context*);
  Status (*CompilerCompileFromBuffer)(Context*, const std::uint8_t*, std::uint64_t, const char*);
  void (*LogOff)();
  Context* (*LoaderCreate)(const Context*);
  Status (*LoaderParseFromBuffer)(Context*, Context**, const std::uint8_t*, std::uint32_t);
  std::uint32_t (*ASTModuleListImports)(const Context*, const Context**, std::uint32_t);
  std::uint32_t (*ASTModuleListImportsLength)(const Context*);
  String (*ImportTypeGetModuleName)(const Context*);
  String (*ImportTypeGetExternalName)(const Context*);
  Context* (*VMCreate)(const Context*, Context*);
  Status (*VMLoadWasmFromASTModule)(Context*, const Context*);
  Status (*VMValidate)(Context*);
  Status (*VMInstantiate)(Context*);
  Status (*VMExecute)(Context*, String, const Value*, std::uint32_t, Value*, std::uint32_t);
  const Context* (*VMGetFunctionType)(const Context*, String);
  std::uint32_t (*FunctionTypeGetReturnsLength)(const Context*);
  Context* (*VMGetImportModuleContext)(const Context*, int);
  void (*ModuleInstanceInitWASI)(Context*, const char* const*, std::uint32_t, const char* const*,
                                 std::uint32_t, const char* const*, std::uint32_t);
  std::uint32_t (*ModuleInstanceWASIGetExitCode)(const Context*);
  ValueType (*ValTypeGenI32)();
  Context* (*FunctionTypeCreate)(const ValueType*, std::uint32_t, const ValueType*, std::uint32_t);
  Context* (*FunctionInstanceCreate)(const Context*, HostFunction, void*, std::uint64_t);
  void (*ModuleInstanceAddFunction)(Context*, String, Context*);
  Context* (*CallingFrameGetMemoryInstance)(const Context*, std::uint32_t);
  std::uint8_t* (*MemoryInstanceGetPointer)(Context*, std::uint64_t, std::uint64_t);
  bool (*ResultOK)(Status);
  const char* (*ResultGetMessage)(Status);
  /// Since 0.16; its default is the interpreter.
  void (*ConfigureSetRunMode)(Context*, int);
};

Api api;

bool resolve(void* library, std::string& why) {
  const auto find = [&](const char* name, auto& function, bool needed) {
    void* const found = ::dlsym(library, name);
    std::memcpy(&function, &found, sizeof found);
    if (found == nullptr && needed) why = std::string("libwasmedge has no ") + name;
  };
#define KUASAR_FIND(name) find("WasmEdge_" #name, api.name, true)
  KUASAR_FIND(ConfigureCreate);
  KUASAR_FIND(ConfigureAddHostRegistration);
  KUASAR_FIND(ConfigureSetMaxMemoryPage);
  KUASAR_FIND(ConfigureSetForceInterpreter);
  KUASAR_FIND(ConfigureRemoveProposal);
  KUASAR_FIND(ConfigureCompilerSetOptimizationLevel);
  KUASAR_FIND(ConfigureCompilerSetOutputFormat);
  KUASAR_FIND(CompilerCreate);
  KUASAR_FIND(CompilerCompileFromBuffer);
  KUASAR_FIND(LogOff);
  KUASAR_FIND(LoaderCreate);
  KUASAR_FIND(LoaderParseFromBuffer);
  KUASAR_FIND(ASTModuleListImports);
  KUASAR_FIND(ASTModuleListImportsLength);
  KUASAR_FIND(ImportTypeGetModuleName);
  KUASAR_FIND(ImportTypeGetExternalName);
  KUASAR_FIND(VMCreate);
  KUASAR_FIND(VMLoadWasmFromASTModule);
  KUASAR_FIND(VMValidate);
  KUASAR_FIND(VMInstantiate);
  KUASAR_FIND(VMExecute);
  KUASAR_FIND(VMGetFunctionType);
  KUASAR_FIND(FunctionTypeGetReturnsLength);
  KUASAR_FIND(VMGetImportModuleContext);
  KUASAR_FIND(ModuleInstanceInitWASI);
  KUASAR_FIND(ModuleInstanceWASIGetExitCode);
  KUASAR_FIND(ValTypeGenI32);
  KUASAR_FIND(FunctionTypeCreate);
  KUASAR_FIND(FunctionInstanceCreate);
  KUASAR_FIND(ModuleInstanceAddFunction);
  KUASAR_FIND(CallingFrameGetMemoryInstance);
  KUASAR_FIND(MemoryInstanceGetPointer);
  KUASAR_FIND(ResultGetMessage);
  KUASAR_FIND(ResultOK);
#undef KUASAR_FIND
  find("WasmEdge_ConfigureSetRunMode", api.ConfigureSetRunMode, false);
  return why.empty();
}

String text_of(const std::string& text) {
  return {static_cast<std::uint32_t>(text.size()), text.c_str()};
}

std::string string_of(String text) {
  return text.text == nullptr ? std::string() : std::string(text.text, text.length);
}

// WasmEdge's own generator is seeded with 64 bits and is no cryptographic one.
Status random_get(void*, const Context* frame, const Value* in, Value* out) {
  out[0].i32 = 0;
  Context* const memory = api.CallingFrameGetMemoryInstance(frame, 0);
  std::uint8_t* at =
      memory == nullptr ? nullptr : api.MemoryInstanceGetPointer(memory, in[0].i32, in[1].i32);
  std::size_t left = in[1].i32;
  if (at == nullptr && left > 0) out[0].i32 = kErrnoFault;
  while (at != nullptr && left > 0) {
    const ssize_t got = ::getrandom(at, left, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      out[0].i32 = kErrnoIo;
      break;
    }
    at += got;
    left -= static_cast<std::size_t>(got);
  }
  return {0};
}

class WasmEdge : public Engine {
 public:
  std::string library_path() const override {
    return file_of(reinterpret_cast<const void*>(api.VMCreate));
  }

  std::string load(const Plan& plan, const std::string& bytes, std::string_view code) override {
    Context* configure = nullptr;
    Context* module = nullptr;
    Status status{};
    if (!code.empty()) {
      configure = make_configure(plan, true);
      status = parse(configure, code, module);
    }
    if (module == nullptr) {
      configure = make_configure(plan, false);
      status = parse(configure, bytes, module);
    }
    if (module == nullptr) return words(status);
    std::vector<const Context*> imports(api.ASTModuleListImportsLength(module));
    api.ASTModuleListImports(module, imports.data(), static_cast<std::uint32_t>(imports.size()));
    for (const Context* import : imports) {
      std::string why = refusal_of(string_of(api.ImportTypeGetModuleName(import)),
                                   string_of(api.ImportTypeGetExternalName(import)));
      if (!why.empty()) return why;
    }
    vm_ = api.VMCreate(configure, nullptr);
    replace_random();
    status = api.VMLoadWasmFromASTModule(vm_, module);
    if (api.ResultOK(status)) status = api.VMValidate(vm_);
    return api.ResultOK(status) ? "" : words(status);
  }

  // The compiler writes its object files beside its output, in the root of the process that
  // compiles.
  std::string compile(const std::string& bytes, std::string& code) override {
    constexpr const char* kOutput = "/module.wasm";
    // The numbers of proposals were others before.
    if (api.ConfigureSetRunMode == nullptr) return "this needs WasmEdge 0.16";
    Context* const configure = api.ConfigureCreate();
    forbid_memory64(configure);
    api.ConfigureCompilerSetOptimizationLevel(configure, kO1);
    api.ConfigureCompilerSetOutputFormat(configure, kUniversal);
    const Status status = api.CompilerCompileFromBuffer(
        api.CompilerCreate(configure), reinterpret_cast<const std::uint8_t*>(bytes.data()),
        bytes.size(), kOutput);
    if (!api.ResultOK(status)) return words(status);
    std::ifstream in(kOutput, std::ios::binary);
    code.assign(std::istreambuf_iterator<char>(in), {});
    return code.empty() ? "the compiler has written nothing" : "";
  }

  GuestEnd run(const Plan& plan) override {
    Context* const wasi = api.VMGetImportModuleContext(vm_, kWasi);
    init_wasi(wasi, plan);
    Status status = api.VMInstantiate(vm_);
    if (!api.ResultOK(status)) return trap(status);
    // A library ("reactor") is set up before its functions are called.
    if (!plan.function.empty() && has("_initialize")) {
      status = call("_initialize");
      if (!api.ResultOK(status)) return trap(status);
    }
    const std::string function = plan.function.empty() ? "_start" : plan.function;
    if (!has(function)) return {kTrapCode, "the module has no function \"" + function + "\""};
    status = call(function);
    if (!api.ResultOK(status)) return trap(status);
    return {static_cast<int>(api.ModuleInstanceWASIGetExitCode(wasi) & 0xff), ""};
  }

 private:
  // Compiled code of 0.17 and before does not check the bounds of 64-bit memories.
  static void forbid_memory64(Context* configure) {
    api.ConfigureRemoveProposal(configure, kMemory64);
  }

  static Context* make_configure(const Plan& plan, bool compiled) {
    Context* const configure = api.ConfigureCreate();
    api.ConfigureAddHostRegistration(configure, kWasi);
    // Code that an image brings in a custom section is not run either.
    api.ConfigureSetForceInterpreter(configure, !compiled);
    if (api.ConfigureSetRunMode != nullptr) {
      api.ConfigureSetRunMode(configure, compiled ? kAot : kInterpreter);
    }
    if (compiled) forbid_memory64(configure);
    if (plan.memory_pages > 0) api.ConfigureSetMaxMemoryPage(configure, plan.memory_pages);
    return configure;
  }

  static Status parse(Context* configure, std::string_view bytes, Context*& module) {
    const Status status = api.LoaderParseFromBuffer(
        api.LoaderCreate(configure), &module, reinterpret_cast<const std::uint8_t*>(bytes.data()),
        static_cast<std::uint32_t>(bytes.size()));
    if (!api.ResultOK(status)) module = nullptr;
    return status;
  }

  static std::string words(Status status) {
    const char* message = api.ResultGetMessage(status);
    return message == nullptr ? "unknown error" : message;
  }
  static GuestEnd trap(Status status) { return {kTrapCode, words(status)}; }

  bool has(const std::string& function) const {
    return api.VMGetFunctionType(vm_, text_of(function)) != nullptr;
  }

  Status call(const std::string& function) const {
    const Context* const type = api.VMGetFunctionType(vm_, text_of(function));
    std::vector<Value> results(api.FunctionTypeGetReturnsLength(type));
    return api.VMExecute(vm_, text_of(function), nullptr, 0, results.data(),
                         static_cast<std::uint32_t>(results.size()));
  }

  void replace_random() const {
    const ValueType i32 = api.ValTypeGenI32();
    const ValueType parameters[] = {i32, i32};
    const Context* const type = api.FunctionTypeCreate(parameters, 2, &i32, 1);
    static const std::string name = "random_get";
    api.ModuleInstanceAddFunction(api.VMGetImportModuleContext(vm_, kWasi), text_of(name),
                                  api.FunctionInstanceCreate(type, random_get, nullptr, 0));
  }

  static void init_wasi(Context* wasi, const Plan& plan) {
    std::vector<std::string> preopens;
    for (const Plan::Preopen& preopen : plan.preopens) {
      preopens.push_back(preopen.guest + ":" + preopen.host +
                         (preopen.readonly ? ":readonly" : ""));
    }
    const auto pointers = [](const std::vector<std::string>& words) {
      std::vector<const char*> out;
      for (const std::string& word : words) out.push_back(word.c_str());
      return out;
    };
    const auto args = pointers(plan.args);
    const auto env = pointers(plan.env);
    const auto dirs = pointers(preopens);
    api.ModuleInstanceInitWASI(wasi, args.data(), static_cast<std::uint32_t>(args.size()),
                               env.data(), static_cast<std::uint32_t>(env.size()), dirs.data(),
                               static_cast<std::uint32_t>(dirs.size()));
  }

  Context* vm_ = nullptr;
};

}  // namespace

std::unique_ptr<Engine> load_wasmedge(const std::string& library, std::string& why) {
  void* const handle = ::dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    why = ::dlerror();
    return nullptr;
  }
  if (!resolve(handle, why)) return nullptr;
  api.LogOff();
  return std::make_unique<WasmEdge>();
}

}  // namespace kuasar::wasm
