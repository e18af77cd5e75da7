#pragma once

// What the files of TaskService share; for them alone.

#include <google/protobuf/empty.pb.h>

#include <chrono>
#include <string>

#include "base/ids.h"
#include "task/convert.h"
#include "task/task_service.h"

namespace kuasar::task {

using Empty = google::protobuf::Empty;

/// SIGKILL ends a process unless it hangs in the kernel.
inline constexpr std::chrono::seconds kKillTimeout{10};

class TaskService::Busy {
 public:
  explicit Busy(TaskService& service) : service_(service) { ++service_.busy_; }
  Busy(const Busy&) = delete;
  Busy& operator=(const Busy&) = delete;
  ~Busy() { --service_.busy_; }

 private:
  TaskService& service_;
};

inline Error no_such_container(const std::string& id) {
  return Error::make(Code::kNotFound, "container {} not found", id.substr(0, kMaxIdLength));
}

inline Error no_such_exec(const std::string& id, const std::string& exec) {
  return Error::make(Code::kNotFound, "exec {} of container {} not found", exec, id);
}

inline Error not_there(const Container& container, const Process& process) {
  return process.exec.empty() ? no_such_container(container.id)
                              : no_such_exec(container.id, process.exec);
}

/// For messages.
inline std::string name_of(const Container& container, const Process& process) {
  if (process.exec.empty()) return "container " + container.id;
  return "exec " + process.exec + " of container " + container.id;
}

inline ProcessRef init_of(const Container& container) {
  return {container.id, ""};
}

inline ProcessRef ref_of(const Container& container, const Process& process) {
  return {container.id, process.exec};
}

inline bool has_stopped(const Process& process) {
  return process.phase == Phase::kStopped || process.phase == Phase::kDeleting;
}

template <typename Response>
void fill_exit(Response& response, const Process& process) {
  response.set_exit_status(static_cast<std::uint32_t>(process.exit_status));
  *response.mutable_exited_at() = to_timestamp(process.exited_at);
}

}  // namespace kuasar::task
