#include "task/cgroup_stats.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <sstream>
#include <string_view>

#include "base/files.h"
#include "base/unique_fd.h"
#include "containerd/cgroups/v1/metrics.pb.h"
#include "containerd/cgroups/v2/metrics.pb.h"
#include "os/cgroup_files.h"
#include "task/any.h"

namespace kuasar::task {
namespace {

namespace v1 = ::io::containerd::cgroups::v1;
namespace v2 = ::io::containerd::cgroups::v2;
using os::CgroupControllers;
using os::ControllerDir;

constexpr std::uint64_t kMax = std::numeric_limits<std::uint64_t>::max();

// The files of one controller: opened by short names, since a container's path is long. None where
// the controller is not.
class Files {
 public:
  explicit Files(const ControllerDir& place)
      : v2_(place.v2),
        dir_(place ? ::open(place.dir.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC) : -1) {}

  explicit operator bool() const { return static_cast<bool>(dir_); }
  bool v2() const { return v2_; }
  std::string text(const std::string& file) const {
    return dir_ ? read_file_at(dir_.get(), file).value_or("") : std::string();
  }
  std::uint64_t number(const std::string& file) const {
    return os::parse_control_number(text(file)).value_or(0);
  }

 private:
  bool v2_;
  UniqueFd dir_;
};

// One line of a file of counters and the setter of its field.
template <typename Message>
struct Field {
  const char* key;
  void (Message::*set)(std::uint64_t);
};

template <typename Message, std::size_t kSize>
void fill(Message& message, const std::string& text, const Field<Message> (&fields)[kSize]) {
  for (const Field<Message>& field : fields) {
    if (const auto value = os::keyed_value(text, field.key)) (message.*field.set)(*value);
  }
}

// Nanoseconds.
struct CpuTimes {
  std::uint64_t total = 0;
  std::uint64_t user = 0;
  std::uint64_t kernel = 0;
};

CpuTimes cpu_times(const Files& cpuacct) {
  CpuTimes times;
  if (cpuacct.v2()) {
    const std::string stat = cpuacct.text("cpu.stat");
    times.total = os::keyed_value(stat, "usage_usec").value_or(0) * 1000;
    times.user = os::keyed_value(stat, "user_usec").value_or(0) * 1000;
    times.kernel = os::keyed_value(stat, "system_usec").value_or(0) * 1000;
    return times;
  }
  times.total = cpuacct.number("cpuacct.usage");
  // cpuacct.stat counts clock ticks.
  static const std::uint64_t tick =
      1'000'000'000ULL / static_cast<std::uint64_t>(std::max(1L, ::sysconf(_SC_CLK_TCK)));
  const std::string stat = cpuacct.text("cpuacct.stat");
  times.user = os::keyed_value(stat, "user").value_or(0) * tick;
  times.kernel = os::keyed_value(stat, "system").value_or(0) * tick;
  return times;
}

struct Throttling {
  std::uint64_t periods = 0;
  std::uint64_t throttled = 0;
  /// Nanoseconds.
  std::uint64_t time = 0;
};

Throttling throttling(const Files& cpu) {
  const std::string stat = cpu.text("cpu.stat");
  Throttling found;
  found.periods = os::keyed_value(stat, "nr_periods").value_or(0);
  found.throttled = os::keyed_value(stat, "nr_throttled").value_or(0);
  found.time = cpu.v2() ? os::keyed_value(stat, "throttled_usec").value_or(0) * 1000
                        : os::keyed_value(stat, "throttled_time").value_or(0);
  return found;
}

template <typename Metrics>
void fill_pids(const Files& pids, Metrics& metrics, std::uint64_t no_limit) {
  if (!pids) return;
  metrics.mutable_pids()->set_current(pids.number("pids.current"));
  const std::uint64_t limit = pids.number("pids.max");
  metrics.mutable_pids()->set_limit(limit == kMax ? no_limit : limit);
}

// ---- v1 ----

v1::MemoryEntry memory_entry(const Files& memory, const std::string& prefix) {
  v1::MemoryEntry entry;
  entry.set_limit(memory.number(prefix + ".limit_in_bytes"));
  entry.set_usage(memory.number(prefix + ".usage_in_bytes"));
  entry.set_max(memory.number(prefix + ".max_usage_in_bytes"));
  entry.set_failcnt(memory.number(prefix + ".failcnt"));
  return entry;
}

constexpr Field<v1::MemoryStat> kMemoryV1[] = {
    {"cache", &v1::MemoryStat::set_cache},
    {"rss", &v1::MemoryStat::set_rss},
    {"rss_huge", &v1::MemoryStat::set_rss_huge},
    {"mapped_file", &v1::MemoryStat::set_mapped_file},
    {"dirty", &v1::MemoryStat::set_dirty},
    {"writeback", &v1::MemoryStat::set_writeback},
    {"pgpgin", &v1::MemoryStat::set_pg_pg_in},
    {"pgpgout", &v1::MemoryStat::set_pg_pg_out},
    {"pgfault", &v1::MemoryStat::set_pg_fault},
    {"pgmajfault", &v1::MemoryStat::set_pg_maj_fault},
    {"inactive_anon", &v1::MemoryStat::set_inactive_anon},
    {"active_anon", &v1::MemoryStat::set_active_anon},
    {"inactive_file", &v1::MemoryStat::set_inactive_file},
    {"active_file", &v1::MemoryStat::set_active_file},
    {"unevictable", &v1::MemoryStat::set_unevictable},
    {"hierarchical_memory_limit", &v1::MemoryStat::set_hierarchical_memory_limit},
    {"hierarchical_memsw_limit", &v1::MemoryStat::set_hierarchical_swap_limit},
    {"total_cache", &v1::MemoryStat::set_total_cache},
    {"total_rss", &v1::MemoryStat::set_total_rss},
    {"total_rss_huge", &v1::MemoryStat::set_total_rss_huge},
    {"total_mapped_file", &v1::MemoryStat::set_total_mapped_file},
    {"total_dirty", &v1::MemoryStat::set_total_dirty},
    {"total_writeback", &v1::MemoryStat::set_total_writeback},
    {"total_pgpgin", &v1::MemoryStat::set_total_pg_pg_in},
    {"total_pgpgout", &v1::MemoryStat::set_total_pg_pg_out},
    {"total_pgfault", &v1::MemoryStat::set_total_pg_fault},
    {"total_pgmajfault", &v1::MemoryStat::set_total_pg_maj_fault},
    {"total_inactive_anon", &v1::MemoryStat::set_total_inactive_anon},
    {"total_active_anon", &v1::MemoryStat::set_total_active_anon},
    {"total_inactive_file", &v1::MemoryStat::set_total_inactive_file},
    {"total_active_file", &v1::MemoryStat::set_total_active_file},
    {"total_unevictable", &v1::MemoryStat::set_total_unevictable},
};

constexpr Field<v1::MemoryOomControl> kOomV1[] = {
    {"oom_kill_disable", &v1::MemoryOomControl::set_oom_kill_disable},
    {"under_oom", &v1::MemoryOomControl::set_under_oom},
    {"oom_kill", &v1::MemoryOomControl::set_oom_kill},
};

// "8:0 Read 4096" lines; the last one is "Total 4096".
void fill_io_entries(const std::string& text,
                     google::protobuf::RepeatedPtrField<v1::BlkIOEntry>& entries) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream in(line);
    std::uint64_t major = 0;
    std::uint64_t minor = 0;
    std::uint64_t value = 0;
    char colon = 0;
    std::string op;
    if (!(in >> major >> colon >> minor >> op >> value) || colon != ':') continue;
    v1::BlkIOEntry& entry = *entries.Add();
    entry.set_op(op);
    entry.set_major(major);
    entry.set_minor(minor);
    entry.set_value(value);
  }
}

void fill_memory(const Files& memory, v1::Metrics& metrics) {
  v1::MemoryStat& stat = *metrics.mutable_memory();
  fill(stat, memory.text("memory.stat"), kMemoryV1);
  *stat.mutable_usage() = memory_entry(memory, "memory");
  *stat.mutable_swap() = memory_entry(memory, "memory.memsw");
  *stat.mutable_kernel() = memory_entry(memory, "memory.kmem");
  *stat.mutable_kernel_tcp() = memory_entry(memory, "memory.kmem.tcp");
  fill(*metrics.mutable_memory_oom_control(), memory.text("memory.oom_control"), kOomV1);
}

// ---- v2 ----

constexpr Field<v2::MemoryStat> kMemoryV2[] = {
    {"anon", &v2::MemoryStat::set_anon},
    {"file", &v2::MemoryStat::set_file},
    {"kernel_stack", &v2::MemoryStat::set_kernel_stack},
    {"slab", &v2::MemoryStat::set_slab},
    {"sock", &v2::MemoryStat::set_sock},
    {"shmem", &v2::MemoryStat::set_shmem},
    {"file_mapped", &v2::MemoryStat::set_file_mapped},
    {"file_dirty", &v2::MemoryStat::set_file_dirty},
    {"file_writeback", &v2::MemoryStat::set_file_writeback},
    {"anon_thp", &v2::MemoryStat::set_anon_thp},
    {"inactive_anon", &v2::MemoryStat::set_inactive_anon},
    {"active_anon", &v2::MemoryStat::set_active_anon},
    {"inactive_file", &v2::MemoryStat::set_inactive_file},
    {"active_file", &v2::MemoryStat::set_active_file},
    {"unevictable", &v2::MemoryStat::set_unevictable},
    {"slab_reclaimable", &v2::MemoryStat::set_slab_reclaimable},
    {"slab_unreclaimable", &v2::MemoryStat::set_slab_unreclaimable},
    {"pgfault", &v2::MemoryStat::set_pgfault},
    {"pgmajfault", &v2::MemoryStat::set_pgmajfault},
    {"workingset_refault_anon", &v2::MemoryStat::set_workingset_refault},
    {"workingset_activate_anon", &v2::MemoryStat::set_workingset_activate},
    {"workingset_nodereclaim", &v2::MemoryStat::set_workingset_nodereclaim},
    {"pgrefill", &v2::MemoryStat::set_pgrefill},
    {"pgscan", &v2::MemoryStat::set_pgscan},
    {"pgsteal", &v2::MemoryStat::set_pgsteal},
    {"pgactivate", &v2::MemoryStat::set_pgactivate},
    {"pgdeactivate", &v2::MemoryStat::set_pgdeactivate},
    {"pglazyfree", &v2::MemoryStat::set_pglazyfree},
    {"pglazyfreed", &v2::MemoryStat::set_pglazyfreed},
    {"thp_fault_alloc", &v2::MemoryStat::set_thp_fault_alloc},
    {"thp_collapse_alloc", &v2::MemoryStat::set_thp_collapse_alloc},
};

constexpr Field<v2::MemoryEvents> kEventsV2[] = {
    {"low", &v2::MemoryEvents::set_low},           {"high", &v2::MemoryEvents::set_high},
    {"max", &v2::MemoryEvents::set_max},           {"oom", &v2::MemoryEvents::set_oom},
    {"oom_kill", &v2::MemoryEvents::set_oom_kill},
};

void fill_memory(const Files& memory, v2::Metrics& metrics) {
  v2::MemoryStat& stat = *metrics.mutable_memory();
  fill(stat, memory.text("memory.stat"), kMemoryV2);
  stat.set_usage(memory.number("memory.current"));
  stat.set_usage_limit(memory.number("memory.max"));
  stat.set_swap_usage(memory.number("memory.swap.current"));
  stat.set_swap_limit(memory.number("memory.swap.max"));
  stat.set_max_usage(memory.number("memory.peak"));
  stat.set_swap_max_usage(memory.number("memory.swap.peak"));
  fill(*metrics.mutable_memory_events(), memory.text("memory.events"), kEventsV2);
}

// "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0" lines.
void fill_io(const std::string& text, v2::IOStat& io) {
  constexpr std::pair<std::string_view, void (v2::IOEntry::*)(std::uint64_t)> kFields[] = {
      {"rbytes=", &v2::IOEntry::set_rbytes},
      {"wbytes=", &v2::IOEntry::set_wbytes},
      {"rios=", &v2::IOEntry::set_rios},
      {"wios=", &v2::IOEntry::set_wios},
  };
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream in(line);
    std::uint64_t major = 0;
    std::uint64_t minor = 0;
    char colon = 0;
    if (!(in >> major >> colon >> minor) || colon != ':') continue;
    v2::IOEntry& entry = *io.add_usage();
    entry.set_major(major);
    entry.set_minor(minor);
    for (std::string word; in >> word;) {
      for (const auto& [key, set] : kFields) {
        if (!word.starts_with(key)) continue;
        const auto value = os::parse_control_number(std::string_view(word).substr(key.size()));
        (entry.*set)(value.value_or(0));
      }
    }
  }
}

}  // namespace

void fill_metrics(const CgroupControllers& controllers, v1::Metrics& metrics) {
  const Files cpuacct(controllers.cpuacct);
  const CpuTimes times = cpu_times(cpuacct);
  v1::CPUUsage& usage = *metrics.mutable_cpu()->mutable_usage();
  usage.set_total(times.total);
  usage.set_user(times.user);
  usage.set_kernel(times.kernel);
  if (!cpuacct.v2()) {
    std::istringstream per_cpu(cpuacct.text("cpuacct.usage_percpu"));
    for (std::uint64_t value = 0; per_cpu >> value;) usage.add_per_cpu(value);
  }
  const Throttling throttled = throttling(Files(controllers.cpu));
  v1::Throttle& throttle = *metrics.mutable_cpu()->mutable_throttling();
  throttle.set_periods(throttled.periods);
  throttle.set_throttled_periods(throttled.throttled);
  throttle.set_throttled_time(throttled.time);
  // v1's message says "no limit" by 0.
  fill_pids(Files(controllers.pids), metrics, 0);
  if (controllers.memory && !controllers.memory.v2) fill_memory(Files(controllers.memory), metrics);
  if (controllers.io && !controllers.io.v2) {
    const Files io(controllers.io);
    v1::BlkIOStat& blkio = *metrics.mutable_blkio();
    fill_io_entries(io.text("blkio.throttle.io_service_bytes_recursive"),
                    *blkio.mutable_io_service_bytes_recursive());
    fill_io_entries(io.text("blkio.throttle.io_serviced_recursive"),
                    *blkio.mutable_io_serviced_recursive());
  }
}

void fill_metrics(const CgroupControllers& controllers, v2::Metrics& metrics) {
  const CpuTimes times = cpu_times(Files(controllers.cpuacct));
  v2::CPUStat& cpu = *metrics.mutable_cpu();
  cpu.set_usage_usec(times.total / 1000);
  cpu.set_user_usec(times.user / 1000);
  cpu.set_system_usec(times.kernel / 1000);
  const Throttling throttled = throttling(Files(controllers.cpu));
  cpu.set_nr_periods(throttled.periods);
  cpu.set_nr_throttled(throttled.throttled);
  cpu.set_throttled_usec(throttled.time / 1000);
  fill_pids(Files(controllers.pids), metrics, kMax);
  if (controllers.memory.v2) fill_memory(Files(controllers.memory), metrics);
  if (controllers.io.v2) fill_io(Files(controllers.io).text("io.stat"), *metrics.mutable_io());
}

Result<google::protobuf::Any> cgroup_stats(const std::vector<std::string>& dirs) {
  const CgroupControllers controllers = os::find_controllers(
      dirs, {&CgroupControllers::cpu, &CgroupControllers::cpuacct, &CgroupControllers::memory,
             &CgroupControllers::pids, &CgroupControllers::io});
  if (!controllers.memory && !controllers.cpuacct && !controllers.pids) {
    return fail(Code::kNotFound, "it has no cgroup with a memory, cpuacct or pids controller");
  }
  const ControllerDir& leader = controllers.memory ? controllers.memory : controllers.cpuacct;
  if (leader.v2) {
    v2::Metrics metrics;
    fill_metrics(controllers, metrics);
    return pack_any(metrics);
  }
  v1::Metrics metrics;
  fill_metrics(controllers, metrics);
  return pack_any(metrics);
}

}  // namespace kuasar::task
