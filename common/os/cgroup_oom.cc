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

struct OomWatch::Impl {
  Impl(asio::any_io_executor executor, int fd, ControllerDir dir)
      : descriptor(std::move(executor), fd), memory(std::move(dir)), seen(kills_of(memory)) {}

  void rearm() {
    char buffer[kEventsSize];
    const int fd = descriptor.native_handle();
    [[maybe_unused]] const ssize_t got = memory.v2 ? ::pread(fd, buffer, sizeof buffer, 0)
                                                   : ::read(fd, buffer, sizeof(std::uint64_t));
  }

  asio::posix::stream_descriptor descriptor;
  ControllerDir memory;
  std::optional<std::uint64_t> seen;
};

OomWatch::OomWatch(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
OomWatch::~OomWatch() = default;

Result<std::shared_ptr<OomWatch>> OomWatch::open(asio::any_io_executor executor,
                                                 const std::vector<std::string>& dirs) {
  const ControllerDir memory = find_controllers(dirs).memory;
  if (!memory) return fail(Code::kFailedPrecondition, "it has no memory cgroup of its own");
  TRY(UniqueFd fd, memory.v2 ? open_v2(memory) : open_v1(memory));
  auto impl = std::make_unique<Impl>(std::move(executor), fd.release(), memory);
  if (memory.v2) impl->rearm();
  return std::shared_ptr<OomWatch>(new OomWatch(std::move(impl)));
}

Task<bool> OomWatch::wait(std::shared_ptr<OomWatch> watch) {
  if (!watch->impl_->descriptor.is_open()) co_return false;
  const auto kind = watch->impl_->memory.v2 ? asio::posix::stream_descriptor::wait_error
                                            : asio::posix::stream_descriptor::wait_read;
  boost::system::error_code ec;
  co_await watch->impl_->descriptor.async_wait(kind, as_result(ec));
  if (ec || !watch->impl_->descriptor.is_open()) co_return false;
  watch->impl_->rearm();
  co_await await_count(watch);
  co_return watch->impl_->descriptor.is_open();
}

Task<> OomWatch::await_count(std::shared_ptr<OomWatch> watch) {
  Impl& impl = *watch->impl_;
  std::chrono::milliseconds pause(1);
  for (int step = 0; step < kCountSteps && impl.descriptor.is_open(); ++step, pause *= 2) {
    const std::optional<std::uint64_t> now = kills_of(impl.memory);
    if (impl.memory.v2 || now != impl.seen) {
      impl.seen = now;
      co_return;
    }
    co_await sleep_for(pause);
  }
}

void OomWatch::close() {
  boost::system::error_code ec;
  impl_->descriptor.close(ec);
}

std::optional<std::uint64_t> oom_kills(const std::vector<std::string>& dirs) {
  return kills_of(find_controllers(dirs).memory);
}

std::uint64_t OomLedger::first_look(const std::string& container,
                                    const std::vector<std::string>& dirs) {
  Container& entry = containers_[container];
  entry.dirs = dirs;
  const ControllerDir memory = find_controllers(dirs).memory;
  entry.kills = kills_of(memory).value_or(0);
  if (!memory.v2) return entry.kills;
  const std::string dir = std::filesystem::path(memory.dir).parent_path();
  for (const auto& [id, other] : containers_) {
    if (other.pod && other.pod->dirs.front() == dir) entry.pod = other.pod;
  }
  if (!entry.pod) {
    entry.pod = std::make_shared<Pod>(Pod{{dir}, 0});
    entry.pod->accounted = oom_kills(entry.pod->dirs).value_or(0);
  }
  return entry.kills;
}

void OomLedger::add(Container& container, std::uint64_t kills) {
  container.kills += kills;
  if (container.pod) container.pod->accounted += kills;
}

bool OomLedger::look(Container& container) {
  const std::optional<std::uint64_t> own = oom_kills(container.dirs);
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
  const std::uint64_t total = oom_kills(entry.pod->dirs).value_or(0);
  add(entry, total - std::min(total, entry.pod->accounted));
  return entry.kills;
}

void OomLedger::forget(const std::string& container) {
  containers_.erase(container);
}

}  // namespace kuasar::os
