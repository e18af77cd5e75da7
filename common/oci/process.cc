#include "oci/process.h"

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
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
  json::value whole = spec->root();
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

namespace {

template <typename Number>
Result<Number> number_of(const json::value& value, std::string_view where) {
  boost::system::error_code ec;
  const Number number = value.to_number<Number>(ec);
  if (ec) return fail(Code::kInvalidArgument, "{}: expected a whole number, 0 or more", where);
  return number;
}

Result<std::uint64_t> limit_field(const json::value& limit, std::string_view key) {
  TRY(const json::value* value, find_field(limit, key));
  if (value == nullptr) return std::uint64_t{0};
  return number_of<std::uint64_t>(*value, fmt::format("process.rlimits.{}", key));
}

Result<> read_limits(const json::value& whole, ProcessView& view) {
  TRY(const json::value* limits, find_field(whole, "process.rlimits"));
  if (limits == nullptr) return {};
  if (!limits->is_array()) return wrong_kind("process.rlimits", "an array", *limits);
  for (const json::value& limit : limits->get_array()) {
    ProcessView::Limit read;
    TRY(read.type, text_field(limit, "type"));
    TRY(read.soft, limit_field(limit, "soft"));
    TRY(read.hard, limit_field(limit, "hard"));
    view.limits.push_back(std::move(read));
  }
  return {};
}

}  // namespace

Result<ProcessView> parse_process(std::string_view text) {
  TRY(const Spec spec, Spec::parse(fmt::format("{{\"process\":{}}}", text)));
  const json::value& whole = spec.root();
  ProcessView view;
  TRY(view.args, spec.args());
  TRY(view.env, spec.env());
  TRY(view.user, spec.process_user());
  TRY(view.cwd, text_field(whole, "process.cwd"));
  if (view.args.empty() || view.args.front().empty()) {
    return fail(Code::kInvalidArgument, "process.args: must not be empty");
  }
  TRY(const json::value* groups, find_field(whole, "process.user.additionalGids"));
  if (groups != nullptr && !groups->is_array()) {
    return wrong_kind("process.user.additionalGids", "an array", *groups);
  }
  for (std::size_t i = 0; groups != nullptr && i < groups->get_array().size(); ++i) {
    TRY(const std::uint32_t group,
        number_of<std::uint32_t>(groups->get_array()[i], "process.user.additionalGids"));
    view.groups.push_back(group);
  }
  TRY(const json::value* mask, find_field(whole, "process.user.umask"));
  if (mask != nullptr) {
    TRY(view.umask, number_of<std::uint32_t>(*mask, "process.user.umask"));
  }
  CHECK_OK(read_limits(whole, view));
  return view;
}

Result<std::string> process_like(std::string_view config, const Command& command) {
  TRY(const Spec spec, Spec::parse(config));
  TRY(const std::vector<std::string> own_env, spec.env());
  json::value whole = spec.root();
  TRY(json::value * found, find_field(whole, "process"));
  if (found == nullptr || !found->is_object()) {
    return fail(Code::kInvalidArgument, "config.json: process is missing");
  }
  json::object& process = found->get_object();
  json::array env;
  for (const std::string& variable : own_env) env.emplace_back(variable);
  for (const std::string& variable : command.env) env.emplace_back(variable);
  process["args"] = json::array(command.args.begin(), command.args.end());
  process["env"] = std::move(env);
  process["terminal"] = command.terminal;
  if (!command.cwd.empty()) process["cwd"] = command.cwd;
  process.erase("consoleSize");
  process.erase("commandLine");
  return json::serialize(process);
}

}  // namespace kuasar::oci
