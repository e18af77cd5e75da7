#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <boost/json/parse.hpp>
#include <boost/json/value.hpp>
#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "e2e/table.h"
#include "support/process.h"
#include "support/wait.h"

// A daemon's spans as OpenTelemetry's own Python package understands them.

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;
using namespace std::chrono_literals;

// Listens on a Unix socket and writes a line of JSON per span.
constexpr const char* kReceiver = R"(
import json, sys
from concurrent import futures
import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

out = open(sys.argv[2], 'a', buffering=1)

class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    def Export(self, request, context):
        for resource in request.resource_spans:
            service = {a.key: a.value.string_value for a in resource.resource.attributes}
            for scope in resource.scope_spans:
                for span in scope.spans:
                    out.write(json.dumps({
                        'service': service['service.name'], 'scope': scope.scope.name,
                        'trace': span.trace_id.hex(), 'id': span.span_id.hex(),
                        'parent': span.parent_span_id.hex(), 'name': span.name,
                        'kind': span.kind, 'status': span.status.code,
                        'begin': span.start_time_unix_nano, 'end': span.end_time_unix_nano,
                        'attributes': {a.key: a.value.string_value for a in span.attributes},
                    }) + '\n')
        return trace_service_pb2.ExportTraceServiceResponse()

server = grpc.server(futures.ThreadPoolExecutor(2))
trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Receiver(), server)
server.add_insecure_port('unix:' + sys.argv[1])
server.start()
out.write('{"ready": true}\n')
server.wait_for_termination()
)";

struct Seen {
  std::string trace;
  std::string id;
  std::string parent;
  std::string name;
  std::string container;
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

std::vector<Seen> read_spans(const fs::path& file) {
  std::vector<Seen> all;
  const std::string text = read_text(file);
  // The last line may be a part of one.
  for (const std::string& line : lines_of(text.substr(0, text.rfind('\n') + 1))) {
    const json::value value = json::parse(line);
    if (value.as_object().contains("ready")) continue;
    const auto words = [&](const char* key) -> std::string {
      return value.at(key).as_string().c_str();
    };
    CHECK(words("service") == "runc-sandboxer");
    CHECK(words("scope") == "kuasar");
    CHECK(words("trace").size() == 32);
    Seen seen{words("trace"), words("id"), words("parent"), words("name"), {}, 0, 0};
    if (const auto* id = value.at("attributes").as_object().if_contains("kuasar.container.id")) {
      seen.container = id->as_string().c_str();
    }
    seen.begin = value.at("begin").to_number<std::int64_t>();
    seen.end = value.at("end").to_number<std::int64_t>();
    CHECK(seen.end >= seen.begin);
    all.push_back(std::move(seen));
  }
  return all;
}

const Seen* find(const std::vector<Seen>& all, const std::string& name,
                 const std::string& container = "") {
  for (const Seen& seen : all) {
    if (seen.name == name && seen.container == container) return &seen;
  }
  return nullptr;
}

const Seen* child_of(const std::vector<Seen>& all, const Seen& parent, const std::string& name) {
  for (const Seen& seen : all) {
    if (seen.name == name && seen.parent == parent.id && seen.trace == parent.trace) return &seen;
  }
  return nullptr;
}

}  // namespace

TEST_CASE("otlp: an OpenTelemetry receiver gets a start with its steps, and may be away",
          "[e2e][table]") {
  const char* modules = std::getenv("KUASAR_LAB_OTLP");
  if (modules == nullptr || !fs::exists(fs::path(modules) / "opentelemetry")) {
    SKIP("no opentelemetry-proto and grpcio for Python (tools/dev setup fetches them with pip)");
  }
  const std::string python_path = fmt::format("PYTHONPATH={}", modules);
  const std::string socket = fmt::format("/tmp/kuasar-otlp-{}.sock", ::getpid());
  const fs::path spans = fmt::format("/tmp/kuasar-otlp-{}.json", ::getpid());
  fs::remove(spans);
  const auto begin_receiver = [&] {
    fs::remove(socket);
    const auto lines = lines_of(read_text(spans)).size();
    Result<Child> child =
        Child::spawn({{"/usr/bin/python3", "-c", kReceiver, socket, spans}, {python_path}, {}});
    REQUIRE(child);
    REQUIRE(wait_until([&] { return lines_of(read_text(spans)).size() > lines; }, 20s));
    return std::move(*child);
  };
  run_case_with("otlp = \"unix:" + socket + "\"\n", [&](Case& e) {
    e.only_ours("spans");
    // Without a receiver everything works.
    e.sleeper(e.run_pod());
    Child receiver = begin_receiver();
    const Pod pod = e.run_pod();
    const Container container = e.sleeper(pod);
    std::vector<Seen> all;
    const bool complete = wait_until(
        [&] {
          all = read_spans(spans);
          return find(all, "Task.Start", container.id) != nullptr;
        },
        30s);
    REQUIRE(complete);
    const Seen* create = find(all, "Task.Create", container.id);
    REQUIRE(create != nullptr);
    const Seen* attach = child_of(all, *create, "attach to the pod");
    REQUIRE(attach != nullptr);
    CHECK(child_of(all, *attach, "pod's lock") != nullptr);
    const Seen* runtime = child_of(all, *create, "OCI runtime");
    REQUIRE(runtime != nullptr);
    CHECK(runtime->begin >= create->begin);
    CHECK(runtime->end <= create->end);
    const Seen* start = find(all, "Controller.Start");
    REQUIRE(start != nullptr);
    CHECK(child_of(all, *start, "namespaces") != nullptr);
    const auto now = std::chrono::duration_cast<std::chrono::nanoseconds>(
        std::chrono::system_clock::now().time_since_epoch());
    CHECK(std::abs(now.count() - create->end) < std::chrono::nanoseconds(60s).count());
    receiver.signal(SIGKILL);
    receiver.wait(10s);
  });
  fs::remove(socket);
  fs::remove(spans);
}

}  // namespace kuasar::test
