#include "oci/spec.h"

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/string.hpp>
#include <cmath>
#include <limits>
#include <span>

#include "oci/json_view.h"

namespace kuasar::oci {
namespace {

namespace json = boost::json;

constexpr std::string_view kNamespaces = "linux.namespaces";

// The fields that we read or write, per object. Another spelling of one of them must not reach
// the runtime.
constexpr std::string_view kRootKeys[] = {"process",     "root",  "hostname", "mounts",
                                          "annotations", "linux", "hooks"};
constexpr std::string_view kProcessKeys[] = {
    "terminal", "user", "args", "env", "selinuxLabel", "apparmorProfile", "oomScoreAdj"};
constexpr std::string_view kHookKeys[] = {"poststart"};
constexpr std::string_view kUserKeys[] = {"uid", "gid"};
constexpr std::string_view kRootfsKeys[] = {"path", "readonly"};
constexpr std::string_view kLinuxKeys[] = {"namespaces", "cgroupsPath", "mountLabel", "uidMappings",
                                           "gidMappings"};
constexpr std::string_view kNamespaceKeys[] = {"type", "path"};
constexpr std::string_view kMappingKeys[] = {"containerID", "hostID", "size"};
constexpr std::string_view kMountKeys[] = {"destination", "type",        "source",
                                           "options",     "uidMappings", "gidMappings"};

Result<> check_keys(const json::value* value, std::span<const std::string_view> known,
                    std::string_view where) {
  if (value == nullptr || !value->is_object()) return {};
  for (const auto& member : value->get_object()) {
    const std::string_view key = member.key();
    for (const std::string_view ours : known) {
      if (key != ours && same_to_go(key, ours)) {
        return fail(Code::kInvalidArgument,
                    "{}: key \"{}\" differs from \"{}\" in case only, and runtimes would read "
                    "it as that; write \"{}\"",
                    where, key, ours, ours);
      }
    }
  }
  return {};
}

Result<> check_elements(const json::value* value, std::span<const std::string_view> known,
                        std::string_view where) {
  if (value == nullptr || !value->is_array()) return {};
  const json::array& array = value->get_array();
  for (std::size_t i = 0; i < array.size(); ++i) {
    CHECK_OK(check_keys(&array[i], known, fmt::format("{}[{}]", where, i)));
  }
  return {};
}

// A number that no double can hold is parsed as infinity (1e600) or as no number at all (0.0e600),
// which JSON has no way to write.
bool has_unwritable(const json::value& value) {
  const auto in_element = [](const json::value& element) { return has_unwritable(element); };
  const auto in_member = [](const auto& member) { return has_unwritable(member.value()); };
  if (value.is_double()) return !std::isfinite(value.get_double());
  if (const json::array* array = value.if_array()) {
    return std::any_of(array->begin(), array->end(), in_element);
  }
  if (const json::object* object = value.if_object()) {
    return std::any_of(object->begin(), object->end(), in_member);
  }
  return false;
}

const json::value* child(const json::value* parent, std::string_view key) {
  if (parent == nullptr || !parent->is_object()) return nullptr;
  return parent->get_object().if_contains(key);
}

Result<> check_spelling(const json::value& root) {
  const json::value* process = child(&root, "process");
  const json::value* linux_part = child(&root, "linux");
  CHECK_OK(check_keys(&root, kRootKeys, "config.json"));
  CHECK_OK(check_keys(process, kProcessKeys, "process"));
  CHECK_OK(check_keys(child(process, "user"), kUserKeys, "process.user"));
  CHECK_OK(check_keys(child(&root, "root"), kRootfsKeys, "root"));
  CHECK_OK(check_keys(child(&root, "hooks"), kHookKeys, "hooks"));
  CHECK_OK(check_keys(linux_part, kLinuxKeys, "linux"));
  CHECK_OK(check_elements(child(linux_part, "namespaces"), kNamespaceKeys, kNamespaces));
  for (const char* maps : {"uidMappings", "gidMappings"}) {
    CHECK_OK(check_elements(child(linux_part, maps), kMappingKeys, maps));
  }
  return check_elements(child(&root, "mounts"), kMountKeys, "mounts");
}

Result<std::uint32_t> id_field(const json::value& root, std::string_view path) {
  TRY(const json::value* value, find_field(root, path));
  if (value == nullptr) return 0U;
  constexpr std::uint32_t kMax = std::numeric_limits<std::uint32_t>::max();
  if (value->is_int64() && value->get_int64() >= 0 && value->get_int64() <= kMax) {
    return static_cast<std::uint32_t>(value->get_int64());
  }
  if (!value->is_number()) return wrong_kind(path, "a number", *value);
  return fail(Code::kInvalidArgument, "{}: expected a whole number from 0 to {}", path, kMax);
}

}  // namespace

Result<std::vector<IdMapping>> read_mappings(const json::value& object, std::string_view path,
                                             std::string_view where) {
  std::vector<IdMapping> out;
  TRY(const json::value* value, find_field(object, path));
  if (value == nullptr) return out;
  if (!value->is_array()) return wrong_kind(where, "an array", *value);
  const json::array& array = value->get_array();
  for (std::size_t i = 0; i < array.size(); ++i) {
    if (!array[i].is_object()) {
      return wrong_kind(fmt::format("{}[{}]", where, i), "an object", array[i]);
    }
    IdMapping mapping;
    TRY(mapping.container_id, id_field(array[i], "containerID"));
    TRY(mapping.host_id, id_field(array[i], "hostID"));
    TRY(mapping.size, id_field(array[i], "size"));
    out.push_back(mapping);
  }
  return out;
}

Spec::Spec() : root_(json::object()) {}

Result<Spec> Spec::parse(std::string_view text) {
  if (text.size() > kMaxSpecBytes) {
    return fail(Code::kResourceExhausted, "config.json: {} bytes, at most {} are accepted",
                text.size(), kMaxSpecBytes);
  }
  json::parse_options options;
  options.max_depth = kMaxSpecDepth;
  boost::system::error_code ec;
  json::value root = json::parse(text, ec, json::storage_ptr(), options);
  if (ec == json::error::too_deep) {
    return fail(Code::kResourceExhausted, "config.json: nested deeper than {} levels",
                kMaxSpecDepth);
  }
  if (ec) {
    return fail(Code::kInvalidArgument, "config.json: not valid JSON: {}", ec.message());
  }
  if (!root.is_object()) return wrong_kind("config.json", "an object", root);
  if (has_unwritable(root)) {
    return fail(Code::kInvalidArgument, "config.json: a number is out of range");
  }
  CHECK_OK(check_spelling(root));
  return Spec(std::move(root));
}

std::string Spec::dump() const {
  return json::serialize(root_);
}

Result<bool> Spec::terminal() const {
  return bool_field(root_, "process.terminal");
}

Result<std::vector<std::string>> Spec::args() const {
  TRY(const json::value* value, find_field(root_, "process.args"));
  if (value == nullptr) return std::vector<std::string>();
  return as_texts(*value, "process.args");
}

Result<std::vector<std::string>> Spec::env() const {
  TRY(const json::value* value, find_field(root_, "process.env"));
  if (value == nullptr) return std::vector<std::string>();
  return as_texts(*value, "process.env");
}

Result<User> Spec::process_user() const {
  TRY(const std::uint32_t uid, id_field(root_, "process.user.uid"));
  TRY(const std::uint32_t gid, id_field(root_, "process.user.gid"));
  return User{uid, gid};
}

Result<std::string> Spec::selinux_label() const {
  return text_field(root_, "process.selinuxLabel");
}
Result<std::string> Spec::apparmor_profile() const {
  return text_field(root_, "process.apparmorProfile");
}
Result<std::string> Spec::mount_label() const {
  return text_field(root_, "linux.mountLabel");
}
Result<std::string> Spec::hostname() const {
  return text_field(root_, "hostname");
}
Result<std::string> Spec::cgroups_path() const {
  return text_field(root_, "linux.cgroupsPath");
}

Result<std::optional<std::string>> Spec::annotation(std::string_view key) const {
  TRY(const json::value* all, find_field(root_, "annotations"));
  if (all == nullptr) return std::nullopt;
  if (!all->is_object()) return wrong_kind("annotations", "an object", *all);
  // A key of annotations may hold dots: no path.
  const json::value* value = all->get_object().if_contains(key);
  if (value == nullptr || value->is_null()) return std::nullopt;
  TRY(std::string text, as_text(*value, fmt::format("annotations[\"{}\"]", key)));
  return text;
}

Result<std::string> Spec::json_at(std::string_view path) const {
  TRY(const json::value* value, find_field(root_, path));
  return value == nullptr ? std::string() : json::serialize(*value);
}

Result<std::string> Spec::root_path() const {
  TRY(std::string path, text_field(root_, "root.path"));
  if (path.empty()) return fail(Code::kInvalidArgument, "root.path: missing or empty");
  return path;
}

Result<> Spec::set_root_path(std::string_view path) {
  TRY(json::value * root, find_field(root_, "root"));
  if (root == nullptr) {
    root = &root_.get_object()["root"];
    root->emplace_object();
  }
  if (!root->is_object()) return wrong_kind("root", "an object", *root);
  root->get_object()["path"] = path;
  return {};
}

Result<bool> Spec::root_readonly() const {
  return bool_field(root_, "root.readonly");
}

Result<std::vector<NamespaceEntry>> Spec::namespaces() const {
  std::vector<NamespaceEntry> out;
  TRY(const json::value* value, find_field(root_, kNamespaces));
  if (value == nullptr) return out;
  if (!value->is_array()) return wrong_kind(kNamespaces, "an array", *value);
  const json::array& array = value->get_array();
  for (std::size_t i = 0; i < array.size(); ++i) {
    if (!array[i].is_object()) {
      return wrong_kind(fmt::format("{}[{}]", kNamespaces, i), "an object", array[i]);
    }
    NamespaceEntry entry;
    for (auto [key, target] : {std::pair("type", &entry.type), std::pair("path", &entry.path)}) {
      const json::value* field = array[i].get_object().if_contains(key);
      if (field == nullptr || field->is_null()) continue;
      TRY(*target, as_text(*field, fmt::format("{}[{}].{}", kNamespaces, i, key)));
    }
    if (entry.type.empty()) {
      return fail(Code::kInvalidArgument, "{}[{}].type: missing or empty", kNamespaces, i);
    }
    out.push_back(std::move(entry));
  }
  return out;
}

Result<> Spec::set_namespace_path(std::string_view type, std::string_view path) {
  TRY(const std::vector<NamespaceEntry> entries, namespaces());
  const auto is_it = [&](const NamespaceEntry& entry) { return entry.type == type; };
  const auto found = std::find_if(entries.begin(), entries.end(), is_it);
  if (found == entries.end()) return fail(Code::kNotFound, "{}: no {} entry", kNamespaces, type);
  if (std::find_if(found + 1, entries.end(), is_it) != entries.end()) {
    return fail(Code::kInvalidArgument, "{}: more than one {} entry", kNamespaces, type);
  }
  TRY(json::value * value, find_field(root_, kNamespaces));
  json::value& entry = value->get_array()[static_cast<std::size_t>(found - entries.begin())];
  entry.get_object()["path"] = path;
  return {};
}

Result<> Spec::remove_namespace(std::string_view type) {
  TRY(const std::vector<NamespaceEntry> entries, namespaces());
  std::size_t removed = 0;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    if (entries[i].type != type) continue;
    TRY(json::value * value, find_field(root_, kNamespaces));
    json::array& array = value->get_array();
    array.erase(array.begin() + (i - removed));
    ++removed;
  }
  if (removed == 0) return fail(Code::kNotFound, "{}: no {} entry", kNamespaces, type);
  return {};
}

Result<std::optional<int>> Spec::oom_score_adj() const {
  constexpr std::string_view kPath = "process.oomScoreAdj";
  TRY(const json::value* value, find_field(root_, kPath));
  if (value == nullptr) return std::nullopt;
  if (!value->is_number()) return wrong_kind(kPath, "a number", *value);
  if (value->is_int64() && value->get_int64() >= -1000 && value->get_int64() <= 1000) {
    return static_cast<int>(value->get_int64());
  }
  return fail(Code::kInvalidArgument, "{}: expected a whole number from -1000 to 1000", kPath);
}

Result<> Spec::set_oom_score_adj(int value) {
  TRY(json::value * process, find_field(root_, "process"));
  if (process == nullptr || !process->is_object()) {
    return fail(Code::kInvalidArgument, "process: missing");
  }
  process->get_object()["oomScoreAdj"] = value;
  return {};
}

Result<bool> Spec::has_poststart_hooks() const {
  constexpr std::string_view kPath = "hooks.poststart";
  TRY(const json::value* hooks, find_field(root_, kPath));
  if (hooks == nullptr) return false;
  if (!hooks->is_array()) return wrong_kind(kPath, "an array", *hooks);
  return !hooks->get_array().empty();
}

Result<std::vector<IdMapping>> Spec::uid_mappings() const {
  return read_mappings(root_, "linux.uidMappings", "linux.uidMappings");
}
Result<std::vector<IdMapping>> Spec::gid_mappings() const {
  return read_mappings(root_, "linux.gidMappings", "linux.gidMappings");
}

bool is_systemd_cgroups_path(std::string_view path) {
  return path.find('/') == path.npos && std::count(path.begin(), path.end(), ':') == 2 &&
         !path.ends_with(':');
}

}  // namespace kuasar::oci
