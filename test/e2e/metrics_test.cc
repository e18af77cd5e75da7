#include <fmt/format.h>
#include <unistd.h>

#include <boost/json/parse.hpp>
#include <boost/json/value.hpp>
#include <catch2/catch_test_macros.hpp>
#include <string>

#include "e2e/table.h"
#include "support/process.h"
#include "support/wait.h"

// The metrics of a daemon at work, read with Prometheus' own client library.

namespace kuasar::test {
namespace {

namespace json = boost::json;

// Debian's own, which has Debian's modules.
constexpr const char* kPython = "/usr/bin/python3";

// Asks over the socket, parses, and prints {"<name>{<label>=<value>,...}": value} and the types.
constexpr const char* kScrape = R"(
import http.client, json, socket, sys
from prometheus_client.parser import text_string_to_metric_families

class Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(sys.argv[1])

connection = Connection('localhost')
connection.request('GET', '/metrics')
response = connection.getresponse()
assert response.status == 200, response.status
samples, types = {}, {}
for family in text_string_to_metric_families(response.read().decode()):
    assert family.documentation, family.name
    types[family.name] = family.type
    for sample in family.samples:
        labels = ','.join(f'{k}={v}' for k, v in sorted(sample.labels.items()))
        samples[f'{sample.name}{{{labels}}}'] = sample.value
print(json.dumps({'samples': samples, 'types': types}))
)";

class Scrape {
 public:
  explicit Scrape(const std::string& socket) {
    const Result<Ran> ran = run_program({kPython, "-c", kScrape, socket});
    REQUIRE(ran);
    INFO(ran->output);
    REQUIRE(ran->code == 0);
    value_ = json::parse(ran->output);
  }
  double operator[](const std::string& sample) const {
    const json::value* found = value_.at("samples").as_object().if_contains(sample);
    INFO(sample);
    REQUIRE(found != nullptr);
    return found->to_number<double>();
  }
  bool has(const std::string& sample) const {
    return value_.at("samples").as_object().contains(sample);
  }
  std::string type(const std::string& name) const {
    return value_.at("types").at(name).as_string().c_str();
  }

 private:
  json::value value_;
};

}  // namespace

TEST_CASE("metrics: what a Prometheus client reads is what there is", "[e2e][table]") {
  const Result<Ran> library = run_program({kPython, "-c", "import prometheus_client.parser"});
  if (!library || library->code != 0) {
    SKIP("no /usr/bin/python3 with prometheus_client (Debian's python3-prometheus-client)");
  }
  const std::string socket = fmt::format("/tmp/kuasar-metrics-{}.sock", ::getpid());
  run_case_with("metrics = \"" + socket + "\"\n", [&](Case& e) {
    e.only_ours("metrics");
    const Scrape before(socket);
    const Pod pod = e.run_pod();
    const Container container = e.sleeper(pod);
    const auto listed = e.cri().exec_sync(container.id, {"true"}, 10);
    REQUIRE(listed);
    const Scrape at_work(socket);
    CHECK(at_work["kuasar_pods{state=running}"] == before["kuasar_pods{state=running}"] + 1);
    CHECK(at_work["kuasar_containers{state=running}"] == 1);
    const auto grown = [&](const std::string& sample) {
      return at_work[sample] - (before.has(sample) ? before[sample] : 0);
    };
    CHECK(grown("kuasar_rpc_handled_total{code=OK,method=Create,service=Controller}") == 1);
    CHECK(grown("kuasar_rpc_handled_total{code=OK,method=Start,service=Controller}") == 1);
    CHECK(grown("kuasar_rpc_handled_total{code=OK,method=Create,service=Task}") == 1);
    CHECK(grown("kuasar_rpc_handled_total{code=OK,method=Start,service=Task}") == 2);
    CHECK(grown("kuasar_rpc_duration_seconds_count{method=Create,service=Task}") == 1);
    CHECK(grown("kuasar_rpc_duration_seconds_sum{method=Create,service=Task}") > 0.001);
    CHECK(grown("kuasar_rpc_duration_seconds_bucket{le=+Inf,method=Create,service=Task}") == 1);
    CHECK(at_work.type("kuasar_rpc_duration_seconds") == "histogram");
    CHECK(at_work.type("kuasar_rpc_handled") == "counter");
    CHECK(at_work.type("kuasar_pods") == "gauge");
    CHECK(at_work["kuasar_task_connections{}"] == 1);
    CHECK(at_work["kuasar_keeper_children{}"] >= 1);
    CHECK(at_work["kuasar_keeper_descriptors{}"] >= 3);
    CHECK(at_work["process_resident_memory_bytes{}"] > 1e6);

    const double starts = at_work["kuasar_starts_total{}"];
    e.lab().kill_sandboxer();
    e.lab().start_sandboxer();
    e.lab().kill_keeper();
    CHECK(wait_until([&] { return Scrape(socket)["kuasar_keeper_replacements_total{}"] == 1; },
                     std::chrono::seconds(10)));
    const Scrape after(socket);
    CHECK(after["kuasar_starts_total{}"] == starts + 1);
    CHECK(after["kuasar_adopted_pods{}"] == 1);
    CHECK(after["kuasar_adopted_containers{}"] == 1);
    CHECK(after["kuasar_containers{state=running}"] == 1);
  });
  CHECK(::access(socket.c_str(), F_OK) != 0);
}

}  // namespace kuasar::test
