// config.json from outside: parse, every accessor, every change, and the text that comes out again.

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "oci/namespace_plan.h"
#include "oci/spec.h"

namespace kuasar::oci {
namespace {

void must(bool truth) {
  if (!truth) std::abort();
}

// Doubles may be rounded by each parse (spec.h): they excuse a text that changes.
bool has_double(const boost::json::value& value) {
  if (value.is_double()) return true;
  if (const auto* array = value.if_array()) {
    return std::any_of(array->begin(), array->end(),
                       [](const auto& element) { return has_double(element); });
  }
  if (const auto* object = value.if_object()) {
    return std::any_of(object->begin(), object->end(),
                       [](const auto& member) { return has_double(member.value()); });
  }
  return false;
}

bool has_double(std::string_view text) {
  boost::json::parse_options options;
  options.max_depth = kMaxSpecDepth;
  return has_double(boost::json::parse(text, boost::json::storage_ptr(), options));
}

void read_all(const Spec& spec) {
  (void)spec.terminal();
  (void)spec.args();
  (void)spec.env();
  (void)spec.process_user();
  (void)spec.selinux_label();
  (void)spec.apparmor_profile();
  (void)spec.mount_label();
  (void)spec.hostname();
  (void)spec.cgroups_path();
  (void)spec.annotation("io.kubernetes.cri.sandbox-id");
  (void)spec.root_path();
  (void)spec.root_readonly();
  (void)spec.namespaces();
  (void)spec.mounts();
  (void)spec.mount_source("/dev/shm");
  (void)spec.uid_mappings();
  (void)spec.gid_mappings();
  (void)spec.has_idmapped_mounts();
}

PodNamespaces pod(bool host_network) {
  PodNamespaces out;
  out.net = "/pin/net";
  out.ipc = "/pin/ipc";
  out.uts = "/pin/uts";
  out.pid = "/pin/pid";
  out.host_network = host_network;
  return out;
}

// Rule 9: whatever came in, what goes to the runtime has pins and new namespaces only.
void check_namespaces(Spec spec, bool host_network) {
  const std::string before = spec.dump();
  if (!apply(spec, pod(host_network))) {
    must(spec.dump() == before);
    return;
  }
  int shared = 0;
  const Result<std::vector<NamespaceEntry>> entries = spec.namespaces();
  for (const NamespaceEntry& entry : entries.value()) {
    must(entry.path.empty() || entry.path.starts_with("/pin/"));
    must(entry.type != "user");
    if (entry.type == "network" || entry.type == "uts" || entry.type == "ipc") {
      must(!entry.path.empty());
      ++shared;
    }
  }
  must(shared == (host_network ? 1 : 3));
}

void check_changes(Spec spec) {
  if (spec.set_root_path("/r/rootfs")) must(spec.root_path().value() == "/r/rootfs");
  Mount mount;
  mount.destination = "/dev//shm/";
  mount.type = "bind";
  mount.source = "/run/shm";
  mount.options = {"rbind"};
  const std::string before = spec.dump();
  const Result<> added = spec.add_mount(mount);
  if (added) {
    must(spec.mount_source("/dev/shm").value() == "/run/shm");
    must(!spec.add_mount(mount));
  } else {
    must(spec.dump() == before);
    if (added.error().code == Code::kAlreadyExists) must(spec.replace_mount(mount).has_value());
  }
  read_all(spec);
  must(Spec::parse(spec.dump()).has_value());
}

}  // namespace
}  // namespace kuasar::oci

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace kuasar::oci;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const kuasar::Result<Spec> parsed = Spec::parse(text);
  if (!parsed) return 0;
  const Spec& spec = *parsed;
  read_all(spec);
  const std::string printed = spec.dump();
  const kuasar::Result<Spec> again = Spec::parse(printed);
  must(again.has_value());
  must(again->dump() == printed || has_double(printed));
  (void)classify_pid(spec, pod(false));
  check_namespaces(spec, false);
  check_namespaces(spec, true);
  check_changes(spec);
  return 0;
}
