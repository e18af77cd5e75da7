#include "task/convert.h"

#include "task/any.h"

namespace kuasar::task {
namespace {

using std::chrono::duration_cast;
using std::chrono::nanoseconds;
using std::chrono::seconds;
using std::chrono::system_clock;
using Record = state::v1::ContainerState;

Record::Phase to_record_phase(Phase phase) {
  switch (phase) {
    case Phase::kCreating: return Record::CREATING;
    case Phase::kCreated: return Record::CREATED;
    case Phase::kRunning: return Record::RUNNING;
    case Phase::kStopped: return Record::STOPPED;
    case Phase::kDeleting: return Record::DELETING;
  }
  return Record::PHASE_UNSPECIFIED;
}

// A record without a phase is one that was never finished.
Phase from_record_phase(Record::Phase phase) {
  switch (phase) {
    case Record::CREATED: return Phase::kCreated;
    case Record::RUNNING: return Phase::kRunning;
    case Record::STOPPED: return Phase::kStopped;
    case Record::DELETING: return Phase::kDeleting;
    default: return Phase::kCreating;
  }
}

}  // namespace

google::protobuf::Timestamp to_timestamp(system_clock::time_point time) {
  const nanoseconds since = time.time_since_epoch();
  const seconds whole = std::chrono::floor<seconds>(since);
  google::protobuf::Timestamp stamp;
  stamp.set_seconds(whole.count());
  stamp.set_nanos(static_cast<std::int32_t>((since - whole).count()));
  return stamp;
}

system_clock::time_point from_timestamp(const google::protobuf::Timestamp& time) {
  return system_clock::time_point(
      duration_cast<system_clock::duration>(seconds(time.seconds()) + nanoseconds(time.nanos())));
}

std::string_view phase_name(Phase phase) {
  switch (phase) {
    case Phase::kCreating: return "being created";
    case Phase::kCreated: return "created";
    case Phase::kRunning: return "running";
    case Phase::kStopped: return "stopped";
    case Phase::kDeleting: return "being deleted";
  }
  return "unknown";
}

::containerd::v1::types::Status to_status(Phase phase) {
  switch (phase) {
    case Phase::kCreating:
    case Phase::kCreated: return ::containerd::v1::types::CREATED;
    case Phase::kRunning: return ::containerd::v1::types::RUNNING;
    case Phase::kStopped:
    case Phase::kDeleting: return ::containerd::v1::types::STOPPED;
  }
  return ::containerd::v1::types::UNKNOWN;
}

Record to_record(const Container& container) {
  Record record;
  record.set_id(container.id);
  record.set_sandbox_id(container.sandbox_id);
  record.set_phase(to_record_phase(container.phase));
  record.set_bundle(container.bundle);
  record.set_stdin(container.paths.stdin_path);
  record.set_stdout(container.paths.stdout_path);
  record.set_stderr(container.paths.stderr_path);
  record.set_shared_pid_namespace(container.shared_pid_namespace);
  if (container.phase == Phase::kStopped || container.phase == Phase::kDeleting) {
    record.set_exit_status(static_cast<std::uint32_t>(container.exit_status));
    *record.mutable_exited_at() = to_timestamp(container.exited_at);
  }
  return record;
}

void from_record(const Record& record, Container& container) {
  container.id = record.id();
  container.sandbox_id = record.sandbox_id();
  container.phase = from_record_phase(record.phase());
  container.bundle = record.bundle();
  container.paths = {record.stdin(), record.stdout(), record.stderr()};
  container.shared_pid_namespace = record.shared_pid_namespace();
  container.exit_status = static_cast<int>(record.exit_status());
  container.exited_at = from_timestamp(record.exited_at());
}

bool unpack_any(const google::protobuf::Any& any, google::protobuf::Message& message) {
  return any_is(any, message.GetDescriptor()->full_name()) && message.ParseFromString(any.value());
}

}  // namespace kuasar::task
