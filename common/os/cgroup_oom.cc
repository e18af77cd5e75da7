#include "os/cgroup_oom.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <chrono>
#include <filesystem>
#include <utility>

#include "base/files.h"
#include "base/unique_fd.h"
#include "os/cgroup_files.h"

namespace kuasar::os {
namespace {

// memory.events is read from its start each time: that is what arms the next poll (kernfs).
constexpr std::size_t kEventsSize = 1024;
// v1 tells of a cgroup that has no memory left before it looks for a victim (mm/memcontrol-v1.c,
// memcg1_oom_prepare): how long the count is looked at, in doubled steps from 1 ms.
constexpr int kCountSteps = 10;

Result<UniqueFd> open_v1(const ControllerDir& memory) {
  const std::string control = memory.file("memory.oom_control");
  const UniqueFd source(::open(control.c_str(), O_RDONLY | O_CLOEXEC));
  if (!source) return fail_errno("open", control);
  UniqueFd event(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!event) return fail_errno("eventfd");
  // The kernel holds the cgroup by itself from here on (cgroup-v1/memcg_test.rst, memory.rst 10).
  CHECK_OK(write_control(memory.file("cgroup.event_control"),
                         fmt::format("{} {}", event.get(), source.get())));
  return event;
}

Result<UniqueFd> open_v2(const ControllerDir& memory) {
  const std::string events = memory.file("memory.events");
  UniqueFd fd(::open(events.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return fail_errno("open", events);
  return fd;
}

std::optional<std::uint64_t> kills_of(const ControllerDir& memory) {
  if (!memory) return std::nullopt;
  const Result<std::string> text =
      read_file(memory.file(memory.v2 ? "memory.events" : "memory.oom_control"));
  return text ? keyed_value(*text, "oom_kill") : std::nullopt;
}

}  // namespace

struct OomWatch::Impl : std::enable_shared_from_this<Impl> {
  Impl(IoExecutor executor, int fd, ControllerDir dir, std::function<void()> told)
      : descriptor(executor, fd),
        memory(std::move(dir)),
        seen(kills_of(memory)),
        changed(std::move(told)) {}

  void rearm() {
    char buffer[kEventsSize];
    const int fd = descriptor.native_handle();
    [[maybe_unused]] const ssize_t got = memory.v2 ? ::pread(fd, buffer, sizeof buffer, 0)
                                                   : ::read(fd, buffer, sizeof(std::uint64_t));
  }
  void wait() {
    descriptor.async_wait(memory.v2 ? asio::posix::descriptor_base::wait_error
                                    : asio::posix::descriptor_base::wait_read,
                          [self = shared_from_this()](const boost::system::error_code& ec) {
                            if (ec || !self->descriptor.is_open()) return;
                            self->rearm();
                            self->await_count(0);
                          });
  }
  void await_count(int step) {
    const std::optional<std::uint64_t> now = kills_of(memory);
    if (memory.v2 || now != seen || step == kCountSteps) {
      seen = now;
      pause.reset();
      changed();
      if (descriptor.is_open()) wait();
      return;
    }
    if (!pause) pause = std::make_unique<IoTimer>(descriptor.get_executor());
    pause->expires_after(std::chrono::milliseconds(1) * (1 << step));
    pause->async_wait([self = shared_from_this(), step](const boost::system::error_code&) {
      if (self->descriptor.is_open()) self->await_count(step + 1);
    });
  }

  asio::posix::basic_stream_descriptor<IoExecutor> descriptor;
  ControllerDir memory;
  std::optional<std::uint64_t> seen;
  std::function<void()> changed;
  std::unique_ptr<IoTimer> pause;
};

OomWatch::OomWatch(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}

OomWatch::~OomWatch() {
  boost::system::error_code ec;
  impl_->descriptor.close(ec);
  if (impl_->pause) impl_->pause->cancel();
}

Result<std::unique_ptr<OomWatch>> OomWatch::open(const asio::any_io_executor& executor,
                                                 const std::vector<std::string>& dirs,
                                                 std::function<void()> changed) {
  const ControllerDir memory = find_controller(dirs, &CgroupControllers::memory);
  if (!memory) return fail(Code::kFailedPrecondition, "it has no memory cgroup of its own");
  TRY(UniqueFd fd, memory.v2 ? open_v2(memory) : open_v1(memory));
  auto impl =
      std::make_shared<Impl>(io_executor(executor), fd.release(), memory, std::move(changed));
  if (memory.v2) impl->rearm();
  impl->wait();
  return std::unique_ptr<OomWatch>(new OomWatch(std::move(impl)));
}

std::optional<std::uint64_t> oom_kills(const std::vector<std::string>& dirs) {
  return kills_of(find_controller(dirs, &CgroupControllers::memory));
}

std::uint64_t OomLedger::first_look(const std::string& container,
                                    const std::vector<std::string>& dirs) {
  Container& entry = containers_[container];
  entry.memory = find_controller(dirs, &CgroupControllers::memory);
  entry.kills = kills_of(entry.memory).value_or(0);
  if (!entry.memory.v2) return entry.kills;
  const ControllerDir memory{std::filesystem::path(entry.memory.dir).parent_path(), true};
  for (const auto& [id, other] : containers_) {
    if (other.pod && other.pod->memory == memory) entry.pod = other.pod;
  }
  if (!entry.pod) {
    entry.pod = std::make_shared<Pod>(Pod{memory, kills_of(memory).value_or(0)});
  }
  return entry.kills;
}

void OomLedger::add(Container& container, std::uint64_t kills) {
  container.kills += kills;
  if (container.pod) container.pod->accounted += kills;
}

bool OomLedger::look(Container& container) {
  const std::optional<std::uint64_t> own = kills_of(container.memory);
  if (own) add(container, *own - std::min(*own, container.kills));
  return own.has_value();
}

std::uint64_t OomLedger::kills(const std::string& container, const std::vector<std::string>& dirs) {
  const auto known = containers_.find(container);
  if (known == containers_.end()) return first_look(container, dirs);
  Container& entry = known->second;
  if (look(entry) || !entry.pod) return entry.kills;
  // What the pod counted meanwhile may be another's, who has not been asked yet.
  for (auto& [id, other] : containers_) {
    if (other.pod == entry.pod) look(other);
  }
  const std::uint64_t total = kills_of(entry.pod->memory).value_or(0);
  add(entry, total - std::min(total, entry.pod->accounted));
  return entry.kills;
}

void OomLedger::forget(const std::string& container) {
  containers_.erase(container);
}

}  // namespace kuasar::os
