#include "os/own_thread.h"

#include <exception>
#include <system_error>
#include <thread>

namespace kuasar::os {

Result<> run_in_own_thread(const std::function<Result<>()>& work) {
  Result<> result;
  try {
    std::thread([&] {
      try {
        result = work();
      } catch (const std::exception& e) {
        result = fail(Code::kInternal, "{}", e.what());
      }
    }).join();
  } catch (const std::system_error& e) {
    return fail(Code::kResourceExhausted,
                "no thread can be started: {}; is a limit of processes reached (pids.max, "
                "kernel.pid_max, kernel.threads-max, RLIMIT_NPROC)?",
                e.code().message());
  }
  return result;
}

}  // namespace kuasar::os
