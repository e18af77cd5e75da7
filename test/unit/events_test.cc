#include "task/events.h"

#include <google/protobuf/empty.pb.h>
#include <sys/un.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <vector>

#include "async/event.h"
#include "async/task_group.h"
#include "containerd/events/events.pb.h"
#include "containerd/services/events/ttrpc/v1/events.pb.h"
#include "task/any.h"
#include "ttrpc/server.h"
#include "unit/ttrpc_fixture.h"

namespace kuasar::test {
namespace {

using containerd::services::events::ttrpc::v1::ForwardRequest;
using google::protobuf::Empty;
using task::EventPublisher;

struct TempDir {
  TempDir() {
    std::string name = (std::filesystem::temp_directory_path() / "events-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path = name;
  }
  ~TempDir() { std::filesystem::remove_all(path); }
  std::filesystem::path path;
};

UniqueFd listen_at(const std::string& path) {
  ::unlink(path.c_str());
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  REQUIRE(path.size() < sizeof address.sun_path);
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  REQUIRE(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
  REQUIRE(::listen(fd.get(), 16) == 0);
  return fd;
}

// containerd's event exchange as far as a publisher sees it.
class Exchange {
 public:
  Exchange(asio::any_io_executor executor, std::string path)
      : executor_(executor), path_(std::move(path)), group_(executor) {}

  void start() {
    server_ = std::make_unique<ttrpc::Server>(executor_);
    server_->add<ForwardRequest, Empty>(
        "containerd.services.events.ttrpc.v1.Events", "Forward",
        [this](ForwardRequest request, ttrpc::CallContext) { return take(std::move(request)); });
    group_.spawn(server_->serve(listen_at(path_)));
  }
  Task<> stop() {
    if (!server_) co_return;
    co_await server_->stop(0s);
    co_await group_.join();
    server_.reset();
  }

  Task<Result<Empty>> take(ForwardRequest request) {
    ++calls;
    if (silent) {
      Event never;
      co_await never.wait();
    }
    if (refusal) co_return fail(*refusal);
    seen.push_back(std::move(request));
    co_return Empty();
  }

  std::vector<ForwardRequest> seen;
  std::optional<Error> refusal;
  bool silent = false;
  int calls = 0;

 private:
  asio::any_io_executor executor_;
  std::string path_;
  std::unique_ptr<ttrpc::Server> server_;
  TaskGroup group_;
};

struct Bench {
  Bench(asio::any_io_executor executor, const std::string& path)
      : exchange(executor, path), group(executor) {
    EventPublisher::Options options;
    options.address = path;
    options.forward_timeout = 200ms;
    options.first_backoff = 5ms;
    options.max_backoff = 20ms;
    options.queue_limit = 100;
    publisher = std::make_unique<EventPublisher>(options);
    group.spawn(publisher->run());
  }
  void publish(const std::string& id) {
    containerd::events::TaskOOM event;
    event.set_container_id(id);
    publisher->publish("k8s.io", "/tasks/oom", event);
  }
  std::vector<std::string> ids() const {
    std::vector<std::string> found;
    for (const ForwardRequest& request : exchange.seen) {
      containerd::events::TaskOOM event;
      CHECK(event.ParseFromString(request.envelope().event().value()));
      found.push_back(event.container_id());
    }
    return found;
  }
  Exchange exchange;
  TaskGroup group;
  std::unique_ptr<EventPublisher> publisher;
};

void with_bench(std::function<Task<>(Bench&)> body) {
  const TempDir dir;
  const std::string path = dir.path / "containerd.sock.ttrpc";
  run_io([&]() -> Task<> {
    Bench bench(co_await asio::this_coro::executor, path);
    co_await body(bench);
    bench.publisher->stop();
    co_await bench.group.join();
    co_await bench.exchange.stop();
  });
}

std::vector<std::string> numbers(int from, int to) {
  std::vector<std::string> all;
  for (int i = from; i < to; ++i) all.push_back(std::to_string(i));
  return all;
}

TEST_CASE("T4: an Any carries the bare message name", "[events]") {
  containerd::events::TaskOOM event;
  event.set_container_id("c");
  const google::protobuf::Any any = task::pack_any(event);
  CHECK(any.type_url() == "containerd.events.TaskOOM");
  CHECK(any.value() == event.SerializeAsString());
  CHECK(task::any_is(any, "containerd.events.TaskOOM"));
  CHECK_FALSE(task::any_is(any, "TaskOOM"));
  google::protobuf::Any prefixed;
  prefixed.set_type_url("types.containerd.io/opencontainers/runtime-spec/1/Spec");
  CHECK(task::any_is(prefixed, "Spec"));
  CHECK_FALSE(task::any_is(prefixed, "1/Spec"));
}

TEST_CASE("events: the shim's events and ours are the same bytes", "[events]") {
  with_bench([](Bench& bench) -> Task<> {
    bench.exchange.start();
    std::vector<ForwardRequest> captured_requests;
    for (const char* name : {"events-001-forward-request", "events-003-forward-request",
                             "events-005-forward-request", "events-007-forward-request"}) {
      ::ttrpc::Request request;
      CHECK(request.ParseFromString(captured(name).substr(ttrpc::kHeaderSize)));
      CHECK(request.service() == "containerd.services.events.ttrpc.v1.Events");
      CHECK(request.method() == "Forward");
      ForwardRequest forward;
      CHECK(forward.ParseFromString(request.payload()));
      captured_requests.push_back(forward);
      const auto& envelope = forward.envelope();
      std::unique_ptr<google::protobuf::Message> event;
      const std::string& type = envelope.event().type_url();
      if (type == "containerd.events.TaskCreate") {
        event = std::make_unique<containerd::events::TaskCreate>();
      } else if (type == "containerd.events.TaskStart") {
        event = std::make_unique<containerd::events::TaskStart>();
      } else if (type == "containerd.events.TaskExit") {
        event = std::make_unique<containerd::events::TaskExit>();
      } else if (type == "containerd.events.TaskDelete") {
        event = std::make_unique<containerd::events::TaskDelete>();
      }
      INFO(type);
      REQUIRE(event);
      CHECK(event->ParseFromString(envelope.event().value()));
      bench.publisher->publish(envelope.namespace_(), envelope.topic(), *event);
    }
    co_await expect(bench.publisher->drain(10s));
    REQUIRE(bench.exchange.seen.size() == captured_requests.size());
    for (std::size_t i = 0; i < captured_requests.size(); ++i) {
      ForwardRequest ours = bench.exchange.seen[i];
      CHECK(ours.envelope().timestamp().seconds() > 1'700'000'000);
      *ours.mutable_envelope()->mutable_timestamp() = captured_requests[i].envelope().timestamp();
      CHECK(ours.SerializeAsString() == captured_requests[i].SerializeAsString());
    }
  });
}

TEST_CASE("events: they wait while containerd is away and arrive in order", "[events]") {
  with_bench([](Bench& bench) -> Task<> {
    for (int i = 0; i < 20; ++i) bench.publish(std::to_string(i));
    CHECK(bench.publisher->pending() == 20);
    co_await expect(bench.publisher->drain(30ms), false);
    bench.exchange.start();
    co_await expect(bench.publisher->drain(10s));
    CHECK(bench.ids() == numbers(0, 20));
    // A restart: what is published meanwhile follows.
    co_await bench.exchange.stop();
    for (int i = 20; i < 30; ++i) bench.publish(std::to_string(i));
    co_await sleep_for(30ms);
    bench.exchange.start();
    co_await expect(bench.publisher->drain(10s));
    CHECK(bench.ids() == numbers(0, 30));
    CHECK(bench.publisher->dropped() == 0);
  });
}

TEST_CASE("events: the queue is bounded and loses its oldest", "[events]") {
  with_bench([](Bench& bench) -> Task<> {
    for (int i = 0; i < 250; ++i) bench.publish(std::to_string(i));
    CHECK(bench.publisher->pending() == 100);
    CHECK(bench.publisher->dropped() == 150);
    bench.exchange.start();
    co_await expect(bench.publisher->drain(10s));
    CHECK(bench.ids() == numbers(150, 250));
  });
}

TEST_CASE("events: one that containerd fails five times is dropped, the next goes on", "[events]") {
  with_bench([](Bench& bench) -> Task<> {
    bench.exchange.start();
    bench.exchange.refusal = Error{Code::kInternal, 0, "no"};
    bench.publish("bad");
    co_await expect(bench.publisher->drain(10s));
    CHECK(bench.exchange.calls == EventPublisher::kAttempts);
    CHECK(bench.publisher->dropped() == 1);
    bench.exchange.refusal = Error{Code::kInvalidArgument, 0, "topic"};
    bench.publish("malformed");
    co_await expect(bench.publisher->drain(10s));
    CHECK(bench.exchange.calls == EventPublisher::kAttempts + 1);
    CHECK(bench.publisher->dropped() == 2);
    bench.exchange.refusal.reset();
    bench.publish("good");
    co_await expect(bench.publisher->drain(10s));
    CHECK(bench.ids() == std::vector<std::string>{"good"});
  });
}

TEST_CASE("D15 events: a containerd that does not answer gets them all when it does", "[events]") {
  with_bench([](Bench& bench) -> Task<> {
    bench.exchange.start();
    bench.exchange.silent = true;
    bench.publish("oom");
    bench.publish("exit");
    CHECK_FALSE(co_await bench.publisher->drain(2s));
    CHECK(bench.exchange.calls > EventPublisher::kAttempts);
    CHECK(bench.publisher->dropped() == 0);
    bench.exchange.silent = false;
    co_await expect(bench.publisher->drain(10s));
    CHECK(bench.ids() == std::vector<std::string>{"oom", "exit"});
    CHECK(bench.publisher->dropped() == 0);
  });
}

TEST_CASE("events: the publisher ends at any moment", "[events]") {
  const TempDir dir;
  const std::string path = dir.path / "containerd.sock.ttrpc";
  const auto start = std::chrono::steady_clock::now();
  for (const bool by_cancel : {false, true}) {
    for (const bool up : {false, true}) {
      for (const int events : {0, 3}) {
        INFO("cancel " << by_cancel << " up " << up << " events " << events);
        run_io([&]() -> Task<> {
          Bench bench(co_await asio::this_coro::executor, path);
          bench.exchange.silent = true;
          if (up) bench.exchange.start();
          for (int i = 0; i < events; ++i) bench.publish(std::to_string(i));
          co_await sleep_for(20ms);
          if (by_cancel) {
            bench.group.cancel();
          } else {
            bench.publisher->stop();
            // Destroyed before run() has noticed.
            bench.publisher.reset();
          }
          co_await bench.group.join();
          co_await bench.exchange.stop();
        });
        ::unlink(path.c_str());
      }
    }
  }
  CHECK(std::chrono::steady_clock::now() - start < 10s);
}

}  // namespace
}  // namespace kuasar::test
