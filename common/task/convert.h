#pragma once

#include <google/protobuf/any.pb.h>
#include <google/protobuf/message.h>
#include <google/protobuf/timestamp.pb.h>

#include <chrono>
#include <string_view>

#include "containerd/v1/types/task.pb.h"
#include "kuasar/state/v1/state.pb.h"
#include "task/container.h"

/// Domain types to and from the wire and the state files, in one place.
namespace kuasar::task {

google::protobuf::Timestamp to_timestamp(std::chrono::system_clock::time_point time);
std::chrono::system_clock::time_point from_timestamp(const google::protobuf::Timestamp& time);

/// "created", "running"... for messages.
std::string_view phase_name(Phase phase);
::containerd::v1::types::Status to_status(Phase phase);

/// The whole record but what the driver adds.
state::v1::ContainerState to_record(const Container& container);
void from_record(const state::v1::ContainerState& record, Container& container);

/// Reads an Any whose type_url is the full name of `message`, alone or behind a prefix and "/".
bool unpack_any(const google::protobuf::Any& any, google::protobuf::Message& message);

}  // namespace kuasar::task
