#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/error.h"
#include "base/timeline.h"

namespace kuasar {

/// What a call is about, for an observer that asked for it; its handler fills it in.
struct CallNotes {
  /// As W3C's Trace Context has it, from the caller; empty: none came.
  std::string traceparent;
  std::string sandbox;
  std::string container;
  std::string exec;
  /// Whose spans between the call's arrival and its end are the call's.
  std::shared_ptr<const Timeline> timeline;
};

/// A call of containerd's that has been answered, or whose answer nobody wants any more.
struct CallEnd {
  /// "Controller" or "Task"; like the method's a name of ours, never the caller's; lives as long
  /// as the servers.
  std::string_view service;
  std::string_view method;
  Code code = Code::kOk;
  std::chrono::steady_clock::time_point begun;
  std::chrono::steady_clock::time_point ended;
  /// nullptr unless the observer has asked for them.
  const CallNotes* notes = nullptr;
};

/// Is told of every call on the io thread. Must not wait.
struct CallObserver {
  std::function<void(const CallEnd&)> ended;
  /// It wants notes, which cost an allocation per call.
  bool wants_notes = false;
};

}  // namespace kuasar
