#include <google/protobuf/util/json_util.h>
#include <google/protobuf/util/message_differencer.h>

#include <algorithm>
#include <boost/json.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <chrono>
#include <filesystem>
#include <set>
#include <string>

#include "e2e/table.h"
#include "support/process.h"
#include "support/wait.h"

// The life of pods and containers as a kubelet leads it.

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;
using Catch::Matchers::ContainsSubstring;
using Clock = std::chrono::steady_clock;

bool listed_ready(Case& e, const Pod& pod) {
  const auto pods = e.cri().list_pods();
  REQUIRE(pods.has_value());
  for (const cri::PodSandbox& item : *pods) {
    if (item.id() == pod.id) return item.state() == cri::SANDBOX_READY;
  }
  return false;
}

// The Controller's methods that containerd called between a pod's Start and its container's
// Task.Create, but for those that only ask: the daemon's log tells.
std::set<std::string> calls_before_create(Case& e, const Pod& pod, const Container& container) {
  std::set<std::string> called;
  const std::string of_pod = "[sandbox=" + pod.id + "] ";
  bool started = false;
  bool created = false;
  for (const std::string& line : lines_of(read_text(e.lab().sandboxer_log()))) {
    const std::size_t at = line.find(of_pod);
    if (at == std::string::npos) continue;
    const std::string words = line.substr(at + of_pod.size());
    created = words.starts_with("[container=" + container.id + "] created, pid ");
    if (created) break;
    if (started && words.starts_with("Controller.")) called.insert(words.substr(11));
    started = started || words == "Controller.Start";
  }
  REQUIRE(started);
  REQUIRE(created);
  for (const char* question : {"Status", "Platform", "Wait"}) called.erase(question);
  return called;
}

}  // namespace

TEST_CASE("lifecycle: a pod and its container go through every state", "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    CHECK(e.state(pod) == cri::SANDBOX_READY);
    CHECK(listed_ready(e, pod));
    const Container container =
        e.create(pod, e.container_config({"sh", "-c", "echo out; echo err >&2; sleep 0.1"}));
    CHECK(e.status(container).state() == cri::CONTAINER_CREATED);
    REQUIRE(e.cri().start_container(container.id).has_value());

    const Finished end = e.finish(container);
    CHECK(end.status.exit_code() == 0);
    CHECK(end.status.reason() == "Completed");
    CHECK(end.log.out == "out\n");
    CHECK(end.log.err == "err\n");
    CHECK(end.status.created_at() > 0);
    CHECK(end.status.started_at() >= end.status.created_at());
    CHECK(end.status.finished_at() > end.status.started_at());

    e.stop(pod);
    CHECK(e.state(pod) == cri::SANDBOX_NOTREADY);
    e.remove(pod);
    CHECK(e.cri().pod_status(pod.id).error().code == Code::kNotFound);
  });
}

TEST_CASE("T1 T2 T5 T11 T26: the task endpoint in a bundle is ours, version 3, by ttrpc",
          "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("one task socket for all pods");
    // T5: the handler has runtime options, and the endpoint comes through beside them.
    REQUIRE(e.lab().containerd_toml().find("NoNewKeyring = true") != std::string::npos);
    const Pod pod = e.run_pod();
    const Container container = e.sleeper(pod);
    const fs::path bundle = e.lab().bundle(container.id);
    CHECK(trimmed(read_text(bundle / "sandbox")) == pod.id);
    const auto bootstrap = boost::json::parse(read_text(bundle / "bootstrap.json")).as_object();
    CHECK(bootstrap.at("version").as_int64() == 3);
    CHECK(bootstrap.at("protocol").as_string() == "ttrpc");
    CHECK(bootstrap.at("address").as_string() ==
          "unix://" + (e.lab().dir() / "task.sock").string());
    CHECK(calls_before_create(e, pod, container) == std::set<std::string>{});
  });
}

TEST_CASE("no pause container and no shim: a pod costs no process", "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("pods without a process");
    const std::size_t shims = processes_with("containerd-shim").size();
    const Census before = Census::take(e.lab().census_scope());
    const Pod pod = e.run_pod();
    const Census after = Census::take(e.lab().census_scope());
    CHECK(after.count("process") == before.count("process"));
    CHECK(processes_with("containerd-shim").size() == shims);
  });
}

TEST_CASE("two containers with different images share their pod and nothing else", "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    const std::string script =
        "echo image=$(cat /etc/image-name); echo env=$IMAGE; echo host=$(hostname);"
        "for ns in net ipc uts mnt pid; do echo $ns=$(readlink /proc/self/ns/$ns); done; sleep "
        "3600";
    const Container one = e.shell(pod, script, kBusyboxImage);
    const Container two = e.shell(pod, script, kToolsImage);
    e.await_output(one, "pid=");
    e.await_output(two, "pid=");
    auto first = parse_pairs(e.log(one).out);
    auto second = parse_pairs(e.log(two).out);
    CHECK(first["image"] == "kuasar-busybox");
    CHECK(second["image"] == "kuasar-tools");
    CHECK(first["env"] == "busybox");
    CHECK(second["env"] == "tools");
    CHECK(first["host"] == pod.config.hostname());
    for (const char* shared : {"net", "ipc", "uts"}) {
      CAPTURE(shared);
      CHECK(first[shared] == second[shared]);
      CHECK(first[shared] != host_namespace(shared));
    }
    for (const char* own : {"mnt", "pid"}) {
      CAPTURE(own);
      CHECK(first[own] != second[own]);
      CHECK(first[own] != host_namespace(own));
    }
  });
}

TEST_CASE("the image's own command, environment and working directory are used", "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    CHECK(e.run(pod, e.container_config({}, kToolsImage)).log.out == "kuasar-tools\n");
    CHECK(e.output_of(pod, "echo $GREETING from $PWD; cat README", kToolsImage) ==
          "hello from /srv\nwritten into the image");
    cri::ContainerConfig config = e.container_config({"sh", "-c", "id -u; id -g; pwd; echo $WHO"});
    config.set_working_dir("/tmp");
    config.mutable_linux()->mutable_security_context()->mutable_run_as_user()->set_value(1000);
    cri::KeyValue* variable = config.add_envs();
    variable->set_key("WHO");
    variable->set_value("a kubelet");
    CHECK(e.run(pod, config).log.out == "1000\n1000\n/tmp\na kubelet\n");
  });
}

TEST_CASE("T3: exit codes 0, 7, 137 and 143 reach CRI with their reasons", "[e2e][table]") {
  run_case([](Case& e) {
    cri::PodSandboxConfig config = e.pod_config();
    namespace_options(config)->set_pid(cri::POD);
    const Pod pod = e.run_pod(config);
    const auto end_of = [&](const std::string& script) {
      // As PID 1 of its own namespace a process could not kill itself.
      cri::ContainerConfig container = e.container_config({"sh", "-c", script});
      namespace_options(container)->set_pid(cri::POD);
      return e.run(pod, container).status;
    };
    CHECK(end_of("exit 0").exit_code() == 0);
    const cri::ContainerStatus seven = end_of("exit 7");
    CHECK(seven.exit_code() == 7);
    CHECK(seven.reason() == "Error");
    CHECK(end_of("kill -9 $$").exit_code() == 137);
    CHECK(end_of("kill -15 $$").exit_code() == 143);
  });
}

TEST_CASE("stop: the grace is given, SIGKILL follows it", "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    const Container polite =
        e.shell(pod, "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.05; done");
    e.await_output(polite, "up\n");
    auto start = Clock::now();
    REQUIRE(e.cri().stop_container(polite.id, 30).has_value());
    CHECK(Clock::now() - start < std::chrono::seconds(10));
    const Finished end = e.finish(polite);
    CHECK(end.status.exit_code() == 5);
    CHECK(end.log.out == "up\nbye\n");

    const Container deaf = e.shell(pod, "trap '' TERM; echo up; while :; do sleep 0.05; done");
    e.await_output(deaf, "up\n");
    start = Clock::now();
    REQUIRE(e.cri().stop_container(deaf.id, 1).has_value());
    const auto took = Clock::now() - start;
    CHECK(took >= std::chrono::seconds(1));
    CHECK(took < std::chrono::seconds(10));
    CHECK(e.finish(deaf).status.exit_code() == 137);

    const Container killed = e.sleeper(pod);
    REQUIRE(e.cri().stop_container(killed.id, 0).has_value());
    CHECK(e.finish(killed).status.exit_code() == 137);
  });
}

TEST_CASE("T28: stop and remove in any order, and twice", "[e2e][table]") {
  run_case([](Case& e) {
    SECTION("a running container is removed") {
      const Pod pod = e.run_pod();
      const Container running = e.sleeper(pod);
      CHECK(e.cri().remove_container(running.id).has_value());
      CHECK(e.cri().remove_container(running.id).has_value());
      CHECK(e.cri().container_status(running.id).error().code == Code::kNotFound);
    }
    SECTION("a created container is removed without a start") {
      const Pod pod = e.run_pod();
      const Container created = e.create(pod, e.container_config({"true"}));
      CHECK(e.cri().remove_container(created.id).has_value());
      CHECK(e.cri().remove_container(created.id).has_value());
    }
    SECTION("an exited container is stopped twice, then removed twice") {
      const Pod pod = e.run_pod();
      const Container exited = e.shell(pod, "exit 3");
      e.finish(exited);
      CHECK(e.cri().stop_container(exited.id, 1).has_value());
      CHECK(e.cri().stop_container(exited.id, 1).has_value());
      CHECK(e.cri().remove_container(exited.id).has_value());
      CHECK(e.cri().remove_container(exited.id).has_value());
    }
    SECTION("the pod is removed without a stop while its container runs") {
      const Pod pod = e.run_pod();
      e.sleeper(pod);
      e.remove(pod);
      e.remove(pod);
    }
    SECTION("the pod is stopped twice and removed twice; containers go before it and after") {
      const Pod pod = e.run_pod();
      const Container first = e.sleeper(pod);
      const Container second = e.sleeper(pod);
      e.stop(pod);
      e.stop(pod);
      CHECK(e.status(first).exit_code() == 137);
      CHECK(e.cri().remove_container(second.id).has_value());
      e.remove(pod);
      e.remove(pod);
    }
    SECTION("a stopped pod takes no new container") {
      const Pod pod = e.run_pod();
      e.stop(pod);
      const auto created = e.try_create(pod, e.container_config({"true"}));
      if (created) CHECK_FALSE(e.cri().start_container(created->id).has_value());
    }
  });
}

TEST_CASE("Status of a pod: times, runtime handler, and full JSON for inspectp", "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    const auto plain = e.cri().pod_status(pod.id);
    REQUIRE(plain.has_value());
    CHECK(plain->info().empty());
    CHECK(plain->status().created_at() > 0);
    CHECK(plain->status().runtime_handler() == e.lab().sandboxer().handler);
    CHECK(plain->status().metadata().name() == pod.config.metadata().name());
    const auto verbose = e.cri().pod_status(pod.id, true);
    REQUIRE(verbose.has_value());
    REQUIRE(verbose->info().count("info") == 1);
    const auto info = boost::json::parse(verbose->info().at("info"));
    REQUIRE(info.is_object());
    CHECK(info.as_object().size() >= 3);
    cri::PodSandboxConfig config;
    google::protobuf::util::JsonParseOptions options;
    options.ignore_unknown_fields = true;
    const std::string json = boost::json::serialize(info.at("config"));
    INFO(json);
    CHECK(google::protobuf::util::JsonStringToMessage(json, &config, options).ok());
    CHECK(google::protobuf::util::MessageDifferencer::Equals(config, pod.config));
  });
}

// What Go's encoding/json reads into cri-api's structs: no enum by name, no number as a string.
bool reads_in_go(const boost::json::value& value) {
  if (const auto* text = value.if_string()) {
    return text->find("NODE") != 0 && text->find("POD") != 0 && text->find("CONTAINER") != 0;
  }
  if (const auto* object = value.if_object()) {
    return std::all_of(object->begin(), object->end(),
                       [](const auto& member) { return reads_in_go(member.value()); });
  }
  if (const auto* array = value.if_array()) {
    return std::all_of(array->begin(), array->end(), reads_in_go);
  }
  return true;
}

TEST_CASE("P1 U8: inspectp's JSON is what containerd 2.3 decodes, with the pod's namespaces",
          "[e2e][table]") {
  run_case([](Case& e) {
    e.only_ours("the words of our own Controller.Status");
    cri::PodSandboxConfig config = e.pod_config();
    namespace_options(config)->set_pid(cri::CONTAINER);
    config.mutable_linux()->mutable_resources()->set_cpu_quota(50'000);
    config.mutable_linux()->mutable_resources()->set_memory_limit_in_bytes(1LL << 40);
    const Pod pod = e.run_pod(config);
    const auto verbose = e.cri().pod_status(pod.id, true);
    REQUIRE(verbose.has_value());
    const auto info = boost::json::parse(verbose->info().at("info"));
    INFO(boost::json::serialize(info));
    CHECK(reads_in_go(info.at("config").at("linux")));
    CHECK(info.at("config").at("linux").at("security_context").at("namespace_options").at("pid") ==
          1);
    CHECK(info.at("pid") == 0);
    CHECK(info.at("config").at("linux").at("resources").at("memory_limit_in_bytes") == 1LL << 40);
    const auto& spec = info.at("runtimeSpec");
    CHECK(spec.at("linux").at("cgroupsPath").as_string() == config.linux().cgroup_parent());
    CHECK(spec.at("linux").at("resources").at("cpu").at("quota") == 50'000);
    CHECK(spec.at("annotations").at("io.kubernetes.cri.sandbox-id").as_string() == pod.id);
    // A script joins the pod's network by it.
    std::string net;
    for (const auto& entry : spec.at("linux").at("namespaces").as_array()) {
      if (entry.at("type") == "network") net = std::string(entry.at("path").as_string());
    }
    const auto links = run_program({"nsenter", "--net=" + net, "ip", "-o", "link"});
    REQUIRE(links);
    CHECK(links->code == 0);
    CHECK(links->output.find("eth0") != std::string::npos);
  });
}

TEST_CASE("P4: a pod of the host's network with a host name of its own is refused",
          "[e2e][table]") {
  run_case([](Case& e) {
    cri::PodSandboxConfig config = e.host_network_config();
    config.set_hostname("web-0");
    const auto pod = e.try_run_pod(config);
    REQUIRE_FALSE(pod);
    CHECK(pod.error().message.find("without a private UTS namespace") != std::string::npos);
  });
}

TEST_CASE("task events of a container reach containerd's exchange in order", "[e2e][table]") {
  run_case([](Case& e) {
    const fs::path heard = e.scratch() / "events";
    const char* prefix = std::getenv("KUASAR_LAB_PREFIX");
    auto listener = Child::spawn({{std::string(prefix) + "/usr/bin/ctr", "--address",
                                   e.lab().containerd_socket(), "--namespace", "k8s.io", "events"},
                                  {},
                                  heard});
    REQUIRE(listener.has_value());
    const Pod pod = e.run_pod();
    // The subscription has no answer of its own: the first event that is heard tells that it
    // stands.
    Container container;
    const auto events_of = [&](const std::string& id) {
      std::string topics;
      for (const std::string& line : lines_of(read_text(heard))) {
        const std::size_t topic = line.find("/tasks/");
        if (line.find(id) == std::string::npos || topic == std::string::npos) continue;
        topics += line.substr(topic + 7, line.find(' ', topic) - topic - 7) + " ";
      }
      return topics;
    };
    const bool all = wait_until(
        [&] {
          container = e.shell(pod, "true");
          e.finish(container);
          return wait_until([&] { return events_of(container.id) == "create start exit delete "; },
                            std::chrono::seconds(1));
        },
        std::chrono::seconds(10));
    INFO("heard: " << events_of(container.id));
    CHECK(all);
  });
}

}  // namespace kuasar::test
