#include "sandbox/pod_spec.h"

#include <google/protobuf/any.pb.h>
#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <boost/json/array.hpp>
#include <boost/json/serialize.hpp>
#include <utility>

#include "cri/runtime/v1/api.pb.h"

namespace kuasar::sandbox {
namespace {

namespace json = boost::json;
namespace pb = google::protobuf;
using pb::FieldDescriptor;

constexpr const char* kSpecType = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
constexpr const char* kOciVersion = "1.1.0";

json::value scalar(const pb::Message& message, const FieldDescriptor& field) {
  const pb::Reflection& read = *message.GetReflection();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32: return read.GetInt32(message, &field);
    case FieldDescriptor::CPPTYPE_INT64: return read.GetInt64(message, &field);
    case FieldDescriptor::CPPTYPE_UINT32: return read.GetUInt32(message, &field);
    case FieldDescriptor::CPPTYPE_UINT64: return read.GetUInt64(message, &field);
    case FieldDescriptor::CPPTYPE_DOUBLE: return read.GetDouble(message, &field);
    case FieldDescriptor::CPPTYPE_FLOAT: return read.GetFloat(message, &field);
    case FieldDescriptor::CPPTYPE_BOOL: return read.GetBool(message, &field);
    case FieldDescriptor::CPPTYPE_ENUM: return read.GetEnumValue(message, &field);
    case FieldDescriptor::CPPTYPE_STRING: return json::string(read.GetString(message, &field));
    case FieldDescriptor::CPPTYPE_MESSAGE: return to_go_json(read.GetMessage(message, &field));
  }
  return nullptr;
}

json::value element(const pb::Message& message, const FieldDescriptor& field, int i) {
  const pb::Reflection& read = *message.GetReflection();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32: return read.GetRepeatedInt32(message, &field, i);
    case FieldDescriptor::CPPTYPE_INT64: return read.GetRepeatedInt64(message, &field, i);
    case FieldDescriptor::CPPTYPE_UINT32: return read.GetRepeatedUInt32(message, &field, i);
    case FieldDescriptor::CPPTYPE_UINT64: return read.GetRepeatedUInt64(message, &field, i);
    case FieldDescriptor::CPPTYPE_DOUBLE: return read.GetRepeatedDouble(message, &field, i);
    case FieldDescriptor::CPPTYPE_FLOAT: return read.GetRepeatedFloat(message, &field, i);
    case FieldDescriptor::CPPTYPE_BOOL: return read.GetRepeatedBool(message, &field, i);
    case FieldDescriptor::CPPTYPE_ENUM: return read.GetRepeatedEnumValue(message, &field, i);
    case FieldDescriptor::CPPTYPE_STRING:
      return json::string(read.GetRepeatedString(message, &field, i));
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return to_go_json(read.GetRepeatedMessage(message, &field, i));
  }
  return nullptr;
}

// A map's keys are strings in JSON.
json::value map_of(const pb::Message& message, const FieldDescriptor& field) {
  const pb::Reflection& read = *message.GetReflection();
  json::object map;
  for (int i = 0; i < read.FieldSize(message, &field); ++i) {
    const pb::Message& entry = read.GetRepeatedMessage(message, &field, i);
    const json::value key = scalar(entry, *entry.GetDescriptor()->map_key());
    const bool is_text = key.is_string();
    map[is_text ? json::string(key.get_string()) : json::string(json::serialize(key))] =
        scalar(entry, *entry.GetDescriptor()->map_value());
  }
  return map;
}

void put(json::object& object, const char* key, std::int64_t value) {
  if (value != 0) object[key] = value;
}

json::object resources(const ::runtime::v1::LinuxContainerResources& limits) {
  json::object cpu;
  put(cpu, "period", limits.cpu_period());
  put(cpu, "quota", limits.cpu_quota());
  put(cpu, "shares", limits.cpu_shares());
  json::object memory;
  put(memory, "limit", limits.memory_limit_in_bytes());
  put(memory, "swap", limits.memory_swap_limit_in_bytes());
  json::object all;
  if (!cpu.empty()) all["cpu"] = std::move(cpu);
  if (!memory.empty()) all["memory"] = std::move(memory);
  return all;
}

}  // namespace

json::value to_go_json(const pb::Message& message) {
  json::object object;
  std::vector<const FieldDescriptor*> fields;
  // Those that are set, in the order of their numbers.
  message.GetReflection()->ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    json::value& value = object[field->name()];
    if (field->is_map()) {
      value = map_of(message, *field);
    } else if (field->is_repeated()) {
      json::array& array = value.emplace_array();
      for (int i = 0; i < message.GetReflection()->FieldSize(message, field); ++i) {
        array.push_back(element(message, *field, i));
      }
    } else {
      value = scalar(message, *field);
    }
  }
  return object;
}

json::object pod_spec(const std::string& id, const ::runtime::v1::PodSandboxConfig& config,
                      const std::vector<oci::NamespaceEntry>& namespaces) {
  json::object annotations;
  for (const auto& [key, value] : config.annotations()) annotations[key] = value;
  // containerd's own (pkg/cri/annotations).
  annotations["io.kubernetes.cri.container-type"] = "sandbox";
  annotations["io.kubernetes.cri.sandbox-id"] = id;
  annotations["io.kubernetes.cri.sandbox-name"] = config.metadata().name();
  annotations["io.kubernetes.cri.sandbox-namespace"] = config.metadata().namespace_();
  annotations["io.kubernetes.cri.sandbox-uid"] = config.metadata().uid();
  annotations["io.kubernetes.cri.sandbox-log-directory"] = config.log_directory();
  json::array entries;
  for (const oci::NamespaceEntry& entry : namespaces) {
    entries.push_back(json::object{{"type", entry.type}, {"path", entry.path}});
  }
  json::object own_linux;
  own_linux["namespaces"] = std::move(entries);
  own_linux["cgroupsPath"] = config.linux().cgroup_parent();
  own_linux["resources"] = resources(config.linux().resources());
  json::object spec;
  spec["ociVersion"] = kOciVersion;
  if (!config.hostname().empty()) spec["hostname"] = config.hostname();
  spec["annotations"] = std::move(annotations);
  spec["linux"] = std::move(own_linux);
  return spec;
}

pb::Any pack_spec(const json::object& spec) {
  pb::Any any;
  any.set_type_url(kSpecType);
  any.set_value(json::serialize(spec));
  return any;
}

}  // namespace kuasar::sandbox
