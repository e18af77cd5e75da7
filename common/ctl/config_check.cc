#include "ctl/config_check.h"

#include <algorithm>
#include <filesystem>

#include "ctl/doctor_parts.h"

namespace kuasar::ctl {
namespace {

constexpr const char* kKinds[] = {"runc", "wasm", "vmm", "quark"};

const Sandboxer& sandboxer_for(const std::vector<Sandboxer>& all, const std::string& file) {
  const std::filesystem::path path(file);
  for (const std::string& name : {path.stem().native(), path.parent_path().stem().native()}) {
    const auto found = std::find_if(all.begin(), all.end(),
                                    [&](const Sandboxer& one) { return one.kind == name; });
    if (found != all.end()) return *found;
  }
  return all.front();
}

std::string without_prefix(std::string text, const std::string& prefix) {
  if (text.starts_with(prefix)) text.erase(0, prefix.size());
  while (text.ends_with('\n')) text.pop_back();
  return text;
}

Finding check_one(const Sandboxer& sandboxer, const std::string& file, const RunProgram& run) {
  const std::string name = sandboxer.kind + "-sandboxer";
  std::vector<std::string> argv{sandboxer.program, "--dump-config"};
  if (!file.empty()) {
    argv.emplace_back("--config");
    argv.push_back(file);
  }
  const std::string check = file.empty() ? name : file;
  const Result<Ran> ran = run(argv);
  if (!ran) {
    return bad(check, ran.error().message, "install the suite whole");
  }
  if (ran->code == 0) {
    return ok(check, file.empty() ? "its files are accepted" : "accepted by " + name);
  }
  return bad(check, without_prefix(ran->output, name + ": "), "correct the file");
}

}  // namespace

std::vector<Sandboxer> find_sandboxers(const Probe& probe, const std::string& own_dir,
                                       std::string_view path) {
  std::vector<Sandboxer> all;
  for (const std::string kind : kKinds) {
    const std::string program = kind + "-sandboxer";
    std::string found = probe.find(program, own_dir);
    if (found.empty()) found = probe.find(program, path);
    if (!found.empty()) all.push_back({kind, std::move(found)});
  }
  return all;
}

std::vector<Finding> check_config(const std::vector<Sandboxer>& sandboxers,
                                  const std::vector<std::string>& files, const RunProgram& run) {
  if (sandboxers.empty()) {
    return {bad("sandboxers", "none is installed beside kuasar-ctl or in PATH",
                "install the suite whole")};
  }
  std::vector<Finding> all;
  if (files.empty()) {
    for (const Sandboxer& one : sandboxers) all.push_back(check_one(one, "", run));
  }
  for (const std::string& file : files) {
    all.push_back(check_one(sandboxer_for(sandboxers, file), file, run));
  }
  return all;
}

}  // namespace kuasar::ctl
