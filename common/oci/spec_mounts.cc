#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/string.hpp>

#include "oci/json_view.h"
#include "oci/spec.h"

namespace kuasar::oci {
namespace {

namespace json = boost::json;

Result<Mount> read_mount(const json::value& value, std::string_view where) {
  if (!value.is_object()) return wrong_kind(where, "an object", value);
  const json::object& object = value.get_object();
  Mount mount;
  const auto present = [&](std::string_view key) -> const json::value* {
    const json::value* field = object.if_contains(key);
    return field != nullptr && !field->is_null() ? field : nullptr;
  };
  for (auto [key, target] : {std::pair("destination", &mount.destination),
                             std::pair("type", &mount.type), std::pair("source", &mount.source)}) {
    if (const json::value* field = present(key)) {
      TRY(*target, as_text(*field, fmt::format("{}.{}", where, key)));
    }
  }
  if (const json::value* field = present("options")) {
    TRY(mount.options, as_texts(*field, fmt::format("{}.options", where)));
  }
  TRY(mount.uid_mappings,
      read_mappings(value, "uidMappings", fmt::format("{}.uidMappings", where)));
  TRY(mount.gid_mappings,
      read_mappings(value, "gidMappings", fmt::format("{}.gidMappings", where)));
  if (mount.destination.empty()) {
    return fail(Code::kInvalidArgument, "{}.destination: missing or empty", where);
  }
  return mount;
}

json::array write_mappings(const std::vector<IdMapping>& mappings) {
  json::array out;
  for (const IdMapping& mapping : mappings) {
    out.push_back(json::object{{"containerID", mapping.container_id},
                               {"hostID", mapping.host_id},
                               {"size", mapping.size}});
  }
  return out;
}

json::object write_mount(const Mount& mount) {
  json::object object;
  object["destination"] = mount.destination;
  if (!mount.type.empty()) object["type"] = mount.type;
  if (!mount.source.empty()) object["source"] = mount.source;
  json::array options;
  for (const std::string& option : mount.options) options.emplace_back(option);
  object["options"] = std::move(options);
  if (!mount.uid_mappings.empty()) object["uidMappings"] = write_mappings(mount.uid_mappings);
  if (!mount.gid_mappings.empty()) object["gidMappings"] = write_mappings(mount.gid_mappings);
  return object;
}

// Both normalised. True also when they are equal.
bool lies_in(std::string_view path, std::string_view parent) {
  if (parent == "/") return true;
  return path.starts_with(parent) && (path.size() == parent.size() || path[parent.size()] == '/');
}

std::ptrdiff_t last_on(const std::vector<Mount>& mounts, std::string_view destination) {
  const std::string wanted = normalise_destination(destination);
  const auto found = std::find_if(mounts.rbegin(), mounts.rend(), [&](const Mount& mount) {
    return normalise_destination(mount.destination) == wanted;
  });
  return mounts.rend() - found - 1;
}

std::size_t place_of(const std::vector<Mount>& mounts, std::string_view destination) {
  const std::string ours = normalise_destination(destination);
  std::size_t after_parents = 0;
  for (std::size_t i = 0; i < mounts.size(); ++i) {
    if (lies_in(ours, normalise_destination(mounts[i].destination))) after_parents = i + 1;
  }
  for (std::size_t i = after_parents; i < mounts.size(); ++i) {
    if (lies_in(normalise_destination(mounts[i].destination), ours)) return i;
  }
  return mounts.size();
}

bool is_idmap_option(std::string_view option) {
  return option == "idmap" || option == "ridmap" || option.starts_with("idmap=") ||
         option.starts_with("ridmap=");
}

}  // namespace

std::string normalise_destination(std::string_view destination) {
  std::vector<std::string_view> parts;
  while (!destination.empty()) {
    const std::size_t slash = std::min(destination.find('/'), destination.size());
    const std::string_view part = destination.substr(0, slash);
    destination.remove_prefix(std::min(slash + 1, destination.size()));
    if (part.empty() || part == ".") continue;
    if (part != "..") {
      parts.push_back(part);
    } else if (!parts.empty()) {
      parts.pop_back();
    }
  }
  std::string out;
  for (const std::string_view part : parts) out.append("/").append(part);
  return out.empty() ? "/" : out;
}

Result<std::vector<Mount>> Spec::mounts() const {
  std::vector<Mount> out;
  TRY(const json::value* value, find_field(root_, "mounts"));
  if (value == nullptr) return out;
  if (!value->is_array()) return wrong_kind("mounts", "an array", *value);
  const json::array& array = value->get_array();
  out.reserve(array.size());
  for (std::size_t i = 0; i < array.size(); ++i) {
    TRY(out.emplace_back(), read_mount(array[i], fmt::format("mounts[{}]", i)));
  }
  return out;
}

Result<std::optional<Mount>> Spec::find_mount(std::string_view destination) const {
  TRY(const std::vector<Mount> all, mounts());
  const std::ptrdiff_t at = last_on(all, destination);
  if (at < 0) return std::nullopt;
  return all[static_cast<std::size_t>(at)];
}

Result<bool> Spec::has_mount(std::string_view destination) const {
  TRY(const std::optional<Mount> mount, find_mount(destination));
  return mount.has_value();
}

Result<std::string> Spec::mount_source(std::string_view destination) const {
  TRY(const std::optional<Mount> mount, find_mount(destination));
  return mount ? mount->source : std::string();
}

Result<> Spec::add_mount(const Mount& mount) {
  if (mount.destination.empty()) {
    return fail(Code::kInvalidArgument, "a mount needs a destination");
  }
  TRY(const std::vector<Mount> all, mounts());
  if (last_on(all, mount.destination) >= 0) {
    return fail(Code::kAlreadyExists, "mounts: {} has a mount already", mount.destination);
  }
  TRY(json::value * value, find_field(root_, "mounts"));
  if (value == nullptr) {
    value = &root_.get_object()["mounts"];
    value->emplace_array();
  }
  json::array& array = value->get_array();
  array.insert(array.begin() + place_of(all, mount.destination), write_mount(mount));
  return {};
}

Result<> Spec::replace_mount(const Mount& mount) {
  TRY(const std::vector<Mount> all, mounts());
  const std::ptrdiff_t at = last_on(all, mount.destination);
  if (at < 0) return fail(Code::kNotFound, "mounts: nothing on {}", mount.destination);
  TRY(json::value * value, find_field(root_, "mounts"));
  value->get_array()[static_cast<std::size_t>(at)] = write_mount(mount);
  return {};
}

Result<bool> Spec::has_idmapped_mounts() const {
  TRY(const std::vector<Mount> all, mounts());
  return std::any_of(all.begin(), all.end(), [](const Mount& mount) {
    return !mount.uid_mappings.empty() || !mount.gid_mappings.empty() ||
           std::any_of(mount.options.begin(), mount.options.end(), is_idmap_option);
  });
}

}  // namespace kuasar::oci
