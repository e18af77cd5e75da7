#include "oci/process.h"

#include <algorithm>
#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <iterator>

#include "oci/json_view.h"
#include "oci/spec.h"

namespace kuasar::oci {
namespace {

namespace json = boost::json;

// Those of the runtime specification 1.2.
constexpr std::string_view kKnown[] = {"terminal",
                                       "consoleSize",
                                       "user",
                                       "args",
                                       "commandLine",
                                       "env",
                                       "cwd",
                                       "capabilities",
                                       "rlimits",
                                       "noNewPrivileges",
                                       "apparmorProfile",
                                       "oomScoreAdj",
                                       "scheduler",
                                       "selinuxLabel",
                                       "ioPriority",
                                       "execCPUAffinity"};

}  // namespace

Result<std::string> exec_process(std::string_view text, bool terminal) {
  // As a part of a spec it gets the checks that a container's own process gets; what a hostile text
  // might add to the object around it is not looked at.
  Result<Spec> spec = Spec::parse(fmt::format("{{\"process\":{}}}", text));
  if (!spec) return fail(std::move(spec).error().context("spec of the exec"));
  TRY(const auto args, spec->args());
  if (args.empty()) return fail(Code::kInvalidArgument, "process.args: must not be empty");
  CHECK_OK(spec->env());
  CHECK_OK(spec->process_user());
  json::value whole = json::parse(spec->dump());
  TRY(const std::string cwd, text_field(whole, "process.cwd"));
  if (cwd.empty() || cwd.front() != '/') {
    return fail(Code::kInvalidArgument, "process.cwd: \"{}\" is not an absolute path", cwd);
  }
  TRY(json::value * process, find_field(whole, "process"));
  for (const auto& member : process->get_object()) {
    const std::string_view key = member.key();
    if (std::find(std::begin(kKnown), std::end(kKnown), key) != std::end(kKnown)) continue;
    return fail(Code::kUnimplemented, "process.{}: not supported", key.substr(0, 100));
  }
  process->get_object()["terminal"] = terminal;
  return json::serialize(*process);
}

}  // namespace kuasar::oci
