#include "bench/rows.h"

namespace kuasar::bench {

const Rows& all_rows() {
  using enum Measure;
  constexpr auto none = std::nullopt;
  // Wall times are of the host's network, unless said: CNI's own time is the same for both sides.
  static const Rows rows{
      {"run_pod", "RunPodSandbox", "ms", kRatio, 0.25, 0.10},
      {"run_pod_cni", "RunPodSandbox, CNI network", "ms", kNone, none, none},
      {"create", "CreateContainer", "ms", kNone, none, none},
      {"start", "StartContainer", "ms", kNone, none, none},
      {"first_output", "pod + container to first output", "ms", kRatio, 0.60, 0.45},
      {"exec", "ExecSync", "ms", kNone, none, none},
      {"stop_container", "StopContainer (SIGKILL) + RemoveContainer", "ms", kNone, none, none},
      {"stop_remove", "StopPodSandbox + RemovePodSandbox", "ms", kRatio, 0.25, 0.10},
      {"stop_remove_cni", "StopPodSandbox + RemovePodSandbox, CNI", "ms", kNone, none, none},
      {"cpu_exec", "CPU of one ExecSync", "ms", kRatio, 0.75, none},
      {"cpu_sandbox", "CPU of RunPodSandbox", "ms", kNone, none, none},
      {"cpu_pod", "CPU of a whole pod's life", "ms", kNone, none, none},
      {"processes", "processes that a sandbox keeps", "", kOurs, 0.0, 0.0},
      {"execs", "programs that RunPodSandbox executes", "", kOurs, 0.0, 0.0},
      {"execs_pod", "programs that a whole pod's life executes", "", kNone, none, none},
      {"burst", "50 pods at once, each to its first output", "/s", kRate, 1.8, 2.5},
      {"memory_0", "memory at rest: private dirty", "MiB", kNone, none, none},
      {"memory_50", "memory at 50 pods: private dirty", "MiB", kOurs, 5.0, none},
      {"memory_500", "memory at 500 pods: private dirty", "MiB", kOurs, 16.0, none},
      {"memory_pod", "memory per pod from 50 to 500", "KiB", kOurs, none, 64.0},
      {"rss_50", "memory at 50 pods: all pages, nobody shares", "MiB", kOurs, 16.0, none},
      {"keeper_100", "the keeper at 100 pods: PSS", "MiB", kOurs, 1.0, none},
      {"threads_50", "threads at 50 pods", "", kNone, none, none},
      {"stats", "ContainerStats at 200 pods", "ms", kRatio, 0.75, 0.50},
      {"list", "ListPodSandbox at 200 pods", "ms", kNone, none, none},
      {"ready", "kill -9 with 100 pods: ready again after", "ms", kOurs, 300.0, 100.0},
      {"run_pod_10", "RunPodSandbox beside 10 pods", "ms", kNone, none, none},
      {"run_pod_100", "RunPodSandbox beside 100 pods", "ms", kNone, none, none},
      {"run_pod_200", "RunPodSandbox beside 200 pods", "ms", kNone, none, none},
      {"run_pod_500", "RunPodSandbox beside 500 pods", "ms", kNone, none, none},
      {"cpu_10", "CPU of a pod beside 10", "ms", kNone, none, none},
      {"cpu_100", "CPU of a pod beside 100", "ms", kNone, none, none},
      {"cpu_200", "CPU of a pod beside 200", "ms", kNone, none, none},
      {"cpu_500", "CPU of a pod beside 500", "ms", kNone, none, none},
      {"own_10", "daemon's and keeper's part of it beside 10", "ms", kNone, none, none},
      {"own_500", "daemon's and keeper's part of it beside 500", "ms", kNone, none, none},
      {"growth", "daemon's and keeper's part beside 500, to 10", "x", kOurs, 1.5, 1.1},
  };
  return rows;
}

bool wants_more(Measure measure) {
  return measure == Measure::kRate || measure == Measure::kOursAtLeast;
}

bool is_ours_alone(Measure measure) {
  return measure == Measure::kOurs || measure == Measure::kOursAtLeast;
}

Verdict judge(const Row& row, double figure) {
  if (row.measure == Measure::kNone) return Verdict::kNone;
  const auto holds = [&](double limit) {
    return wants_more(row.measure) ? figure >= limit : figure <= limit;
  };
  if (row.target && holds(*row.target)) return Verdict::kTarget;
  if (row.must) return holds(*row.must) ? Verdict::kMust : Verdict::kMissed;
  return Verdict::kNone;
}

std::string_view verdict_word(Verdict verdict) {
  switch (verdict) {
    case Verdict::kTarget: return "target met";
    case Verdict::kMust: return "met";
    case Verdict::kMissed: return "MISSED";
    case Verdict::kNone: return "";
  }
  return "";
}

}  // namespace kuasar::bench
