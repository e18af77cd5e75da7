#pragma once

#include <boost/json/object.hpp>
#include <boost/json/value.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "oci/spec.h"

namespace google::protobuf {
class Any;
class Message;
}  // namespace google::protobuf
namespace runtime::v1 {
class PodSandboxConfig;
}

namespace kuasar::sandbox {

/// A message as encoding/json of Go writes and reads the struct that protoc-gen-go makes of it:
/// the proto's field names, numbers for enums and for 64-bit integers, absent fields left out.
/// (Protobuf's own JSON has names and strings there; containerd 2.3 reads the former:
/// internal/cri/server/sandbox_status.go.) For messages without oneof, bytes and Any. Pure.
boost::json::value to_go_json(const google::protobuf::Message& message);

/// The OCI spec of a pod, which has no container of its own: what NRI plugins and network scripts
/// look for in the spec of a pause container. `namespaces` are the pod's own, each with a path that
/// can be joined; cgroupsPath is the pod's cgroup. Pure.
boost::json::object pod_spec(const std::string& id, const runtime::v1::PodSandboxConfig& config,
                             const std::vector<oci::NamespaceEntry>& namespaces);
/// As containerd takes it (typeurl of "types.containerd.io"/"opencontainers/runtime-spec/1/Spec").
google::protobuf::Any pack_spec(const boost::json::object& spec);

}  // namespace kuasar::sandbox
