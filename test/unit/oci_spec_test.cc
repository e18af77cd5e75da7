#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators_all.hpp>
#include <string>

#include "base/files.h"
#include "oci/spec.h"

namespace kuasar::oci {
namespace {

Spec must_parse(std::string_view text) {
  auto spec = Spec::parse(text);
  INFO((spec ? std::string() : spec.error().message));
  REQUIRE(spec);
  return std::move(*spec);
}

std::string data(const std::string& name) {
  auto text = read_file(std::string(KUASAR_TEST_DATA "/oci/") + name);
  REQUIRE(text);
  return *text;
}

template <typename T>
std::string message_of(const Result<T>& result) {
  REQUIRE_FALSE(result);
  return result.error().message;
}

Mount bind(std::string destination) {
  Mount mount;
  mount.destination = std::move(destination);
  mount.type = "bind";
  mount.source = "/src";
  mount.options = {"rbind", "ro"};
  return mount;
}

std::vector<std::string> destinations(const Spec& spec) {
  std::vector<std::string> out;
  const std::vector<Mount> mounts = spec.mounts().value();
  for (const Mount& mount : mounts) out.push_back(mount.destination);
  return out;
}

}  // namespace

TEST_CASE("oci spec: nothing is lost between parse and dump") {
  SECTION("a config.json as CRI writes it, byte for byte") {
    const std::string text = data("cri_container.json");
    CHECK(must_parse(text).dump() == text);
  }
  SECTION("unknown fields, key order, nulls, escapes") {
    const std::string text =
        R"({"z":null,"a":{"":[]},"process":{"new":[true,{}],"args":["\u0001\"\\é"]},"b":{}})";
    CHECK(must_parse(text).dump() == text);
  }
  SECTION("integers at the limits") {
    const std::string text =
        R"({"a":9223372036854775807,"b":-9223372036854775808,"c":18446744073709551615,"d":0})";
    CHECK(must_parse(text).dump() == text);
  }
  SECTION("what is no integer keeps its value, not its notation") {
    CHECK(must_parse(R"({"a":1.5})").dump() == R"({"a":1.5E0})");
    CHECK(must_parse(must_parse(R"({"a":0.1})").dump()).dump() ==
          must_parse(R"({"a":0.1})").dump());
  }
  SECTION("of a repeated key the last one counts") {
    CHECK(must_parse(R"({"hostname":"a","hostname":"b"})").dump() == R"({"hostname":"b"})");
  }
  SECTION("what ctr prints, with its indentation") {
    const Spec spec = must_parse(data("ctr_oci_spec.json"));
    CHECK(must_parse(spec.dump()).dump() == spec.dump());
    CHECK(spec.namespaces().value().size() == 5);
  }
}

TEST_CASE("oci spec: what is no config.json is refused") {
  CHECK(Spec::parse("").error().code == Code::kInvalidArgument);
  CHECK(Spec::parse("{").error().code == Code::kInvalidArgument);
  CHECK(Spec::parse("{} {}").error().code == Code::kInvalidArgument);
  CHECK(Spec::parse("{\"a\":\"\xff\"}").error().code == Code::kInvalidArgument);
  CHECK(message_of(Spec::parse("[]")) == "config.json: expected an object, found an array");

  for (const char* text : {R"({"a":[1.5e600]})", R"({"a":{"b":0.0e3015}})"}) {
    CHECK(message_of(Spec::parse(text)) == "config.json: a number is out of range");
  }

  const auto nested = [](std::size_t levels) {
    return R"({"a":)" + std::string(levels - 1, '[') + std::string(levels - 1, ']') + "}";
  };
  CHECK(Spec::parse(nested(64)));
  const auto deep = Spec::parse(nested(65));
  CHECK(message_of(deep) == "config.json: nested deeper than 64 levels");
  CHECK(deep.error().code == Code::kResourceExhausted);
  CHECK(Spec::parse(nested(200'000)).error().code == Code::kResourceExhausted);

  std::string large = R"({"a":")" + std::string(kMaxSpecBytes - 8, 'x') + "\"}";
  REQUIRE(large.size() == kMaxSpecBytes);
  CHECK(Spec::parse(large));
  large += ' ';
  CHECK(Spec::parse(large).error().code == Code::kResourceExhausted);
}

TEST_CASE("oci spec: another spelling of a field of ours cannot pass by us") {
  CHECK(Spec::parse(R"({"Linux":{}})").error().code == Code::kInvalidArgument);
  CHECK(message_of(Spec::parse(R"({"linux":{"Namespaces":[]}})")) ==
        "linux: key \"Namespaces\" differs from \"namespaces\" in case only, and runtimes would "
        "read it as that; write \"namespaces\"");
  CHECK_FALSE(Spec::parse(R"({"linux":{"name\u017fpaces":[]}})"));
  CHECK_FALSE(Spec::parse(R"({"linux":{"namespaces":[{"type":"pid"},{"PATH":"/x"}]}})"));
  CHECK_FALSE(Spec::parse(R"({"mounts":[{"Destination":"/x"}]})"));
  CHECK_FALSE(Spec::parse(R"({"process":{"user":{"UID":0}}})"));
  CHECK_FALSE(Spec::parse(R"({"root":{"Path":"/"}})"));
  CHECK(Spec::parse(R"({"annotations":{"a":"1","A":"2"},"LINUX2":1})"));
}

TEST_CASE("oci spec: fields of a container as CRI writes it") {
  const Spec spec = must_parse(data("cri_container.json"));
  CHECK(spec.terminal().value() == false);
  CHECK(spec.args().value() == std::vector<std::string>{"/bin/sh", "-c", "echo hello; sleep 3600"});
  CHECK(spec.env().value().at(1) == "HOSTNAME=pod-1");
  CHECK(spec.process_user().value() == User{1000, 1000});
  CHECK(spec.root_path().value() == "rootfs");
  CHECK(spec.root_readonly().value());
  CHECK(spec.cgroups_path().value().starts_with("/k8s.io/"));
  CHECK(spec.annotation("io.kubernetes.cri.container-type").value() == "container");
  CHECK(spec.annotation("io.kubernetes.cri.absent").value() == std::nullopt);
  CHECK(spec.namespaces().value().at(4) == NamespaceEntry{"network", "/proc/0/ns/net"});
  CHECK(spec.find_mount("/dev/shm").value()->type == "tmpfs");
  CHECK(spec.mount_source("//data/").value() == "/srv/data");
  CHECK_FALSE(spec.has_mount("/etc/hosts").value());
  CHECK(spec.uid_mappings().value().empty());
  CHECK_FALSE(spec.has_idmapped_mounts().value());
}

TEST_CASE("oci spec: absent and null fields are empty values") {
  const Spec spec = must_parse(GENERATE(
      "{}", R"({"process":null,"root":null,"linux":null,"mounts":null,"annotations":null})",
      R"({"process":{"args":null,"user":{"uid":null}},"linux":{"namespaces":null}})"));
  CHECK(spec.terminal().value() == false);
  CHECK(spec.args().value().empty());
  CHECK(spec.env().value().empty());
  CHECK(spec.process_user().value() == User{0, 0});
  CHECK(spec.selinux_label().value().empty());
  CHECK(spec.mount_label().value().empty());
  CHECK(spec.apparmor_profile().value().empty());
  CHECK(spec.hostname().value().empty());
  CHECK(spec.cgroups_path().value().empty());
  CHECK(spec.annotation("x").value() == std::nullopt);
  CHECK(message_of(spec.root_path()) == "root.path: missing or empty");
  CHECK(spec.root_readonly().value() == false);
  CHECK(spec.namespaces().value().empty());
  CHECK(spec.mounts().value().empty());
  CHECK(spec.mount_source("/x").value().empty());
  CHECK(spec.uid_mappings().value().empty());
  CHECK(spec.gid_mappings().value().empty());
  CHECK_FALSE(spec.has_idmapped_mounts().value());
}

TEST_CASE("oci spec: a default one is an empty object") {
  CHECK(Spec().dump() == "{}");
}

TEST_CASE("oci spec: a field of a wrong type is named by its path") {
  const auto spec = [](std::string_view text) { return must_parse(text); };
  CHECK(message_of(spec(R"({"process":{"args":["a","b",3]}})").args()) ==
        "process.args[2]: expected a string, found a number");
  CHECK(message_of(spec(R"({"process":[]})").args()) ==
        "process: expected an object, found an array");
  CHECK(message_of(spec(R"({"process":{"terminal":"yes"}})").terminal()) ==
        "process.terminal: expected a boolean, found a string");
  CHECK(message_of(spec(R"({"process":{"env":{}}})").env()) ==
        "process.env: expected an array of strings, found an object");
  CHECK(message_of(spec(R"({"process":{"args":["a\u0000b"]}})").args()) ==
        "process.args[0]: the string holds a NUL byte");
  CHECK(message_of(spec(R"({"process":{"user":{"uid":-1}}})").process_user()) ==
        "process.user.uid: expected a whole number from 0 to 4294967295");
  CHECK(message_of(spec(R"({"process":{"user":{"gid":4294967296}}})").process_user()) ==
        "process.user.gid: expected a whole number from 0 to 4294967295");
  CHECK(message_of(spec(R"({"process":{"user":{"gid":1.5}}})").process_user()) ==
        "process.user.gid: expected a whole number from 0 to 4294967295");
  CHECK(message_of(spec(R"({"linux":{"cgroupsPath":7}})").cgroups_path()) ==
        "linux.cgroupsPath: expected a string, found a number");
  CHECK(message_of(spec(R"({"annotations":{"a.b":[]}})").annotation("a.b")) ==
        "annotations[\"a.b\"]: expected a string, found an array");
  CHECK(message_of(spec(R"({"linux":{"namespaces":[{"path":"/x"}]}})").namespaces()) ==
        "linux.namespaces[0].type: missing or empty");
  CHECK(message_of(spec(R"({"linux":{"namespaces":["pid"]}})").namespaces()) ==
        "linux.namespaces[0]: expected an object, found a string");
  CHECK(message_of(spec(R"({"mounts":[{"destination":"/a"},{}]})").mounts()) ==
        "mounts[1].destination: missing or empty");
  CHECK(message_of(spec(R"({"mounts":[{"destination":"/a","options":[1]}]})").has_mount("/a")) ==
        "mounts[0].options[0]: expected a string, found a number");
  CHECK(message_of(spec(R"({"linux":{"uidMappings":{}}})").uid_mappings()) ==
        "linux.uidMappings: expected an array, found an object");

  Spec broken_root = spec(R"({"root":"rootfs"})");
  CHECK(message_of(broken_root.set_root_path("/r")) == "root: expected an object, found a string");
  CHECK(broken_root.dump() == R"({"root":"rootfs"})");
}

TEST_CASE("oci spec: the root path is replaced in its place") {
  Spec spec = must_parse(R"({"root":{"path":"rootfs","readonly":true},"x":1})");
  REQUIRE(spec.set_root_path("/run/c/bundle/rootfs"));
  CHECK(spec.dump() == R"({"root":{"path":"/run/c/bundle/rootfs","readonly":true},"x":1})");
  Spec none = must_parse(R"({"x":1})");
  REQUIRE(none.set_root_path("/r"));
  CHECK(none.dump() == R"({"x":1,"root":{"path":"/r"}})");
}

TEST_CASE("oci spec: namespace entries are changed one by one") {
  Spec spec = must_parse(
      R"({"linux":{"namespaces":[{"type":"pid"},{"type":"ipc","path":"/a"},{"type":"uts"}]}})");
  REQUIRE(spec.set_namespace_path("ipc", "/pin"));
  REQUIRE(spec.set_namespace_path("pid", "/pid"));
  REQUIRE(spec.remove_namespace("uts"));
  CHECK(spec.dump() == R"({"linux":{"namespaces":[{"type":"pid","path":"/pid"},)"
                       R"({"type":"ipc","path":"/pin"}]}})");
  CHECK(spec.set_namespace_path("user", "/x").error().code == Code::kNotFound);
  CHECK(spec.remove_namespace("user").error().code == Code::kNotFound);

  Spec twice =
      must_parse(R"({"linux":{"namespaces":[{"type":"pid"},{"type":"ipc"},{"type":"pid"}]}})");
  CHECK(twice.set_namespace_path("pid", "/x").error().code == Code::kInvalidArgument);
  REQUIRE(twice.remove_namespace("pid"));
  CHECK(twice.dump() == R"({"linux":{"namespaces":[{"type":"ipc"}]}})");
}

TEST_CASE("oci spec: destinations are compared as the runtime mounts them") {
  CHECK(normalise_destination("/a/b") == "/a/b");
  CHECK(normalise_destination("//a///b//") == "/a/b");
  CHECK(normalise_destination("/a/./b/.") == "/a/b");
  CHECK(normalise_destination("dev/shm") == "/dev/shm");
  CHECK(normalise_destination("/a/../b") == "/b");
  CHECK(normalise_destination("/../..") == "/");
  CHECK(normalise_destination("") == "/");
  const Spec spec = must_parse(R"({"mounts":[{"destination":"/dev//shm/"}]})");
  CHECK(spec.has_mount("/dev/shm").value());
  CHECK_FALSE(spec.has_mount("/dev").value());
  CHECK_FALSE(spec.has_mount("/dev/sh").value());
}

TEST_CASE("oci spec: a new mount lies above its parents and below its children") {
  Spec spec = must_parse(R"({"mounts":[{"destination":"/proc"},{"destination":"/dev"},
      {"destination":"/dev/pts"},{"destination":"/etc/ssl/certs"}]})");
  REQUIRE(spec.add_mount(bind("/dev/shm")));
  CHECK(destinations(spec) ==
        std::vector<std::string>{"/proc", "/dev", "/dev/pts", "/etc/ssl/certs", "/dev/shm"});
  REQUIRE(spec.add_mount(bind("/etc")));
  CHECK(destinations(spec) == std::vector<std::string>{"/proc", "/dev", "/dev/pts", "/etc",
                                                       "/etc/ssl/certs", "/dev/shm"});
  REQUIRE(spec.add_mount(bind("/etc/hosts")));
  CHECK(destinations(spec).back() == "/etc/hosts");
  CHECK(spec.find_mount("/etc/hosts").value() == bind("/etc/hosts"));
  CHECK(spec.add_mount(bind("/etc//hosts/")).error().code == Code::kAlreadyExists);
  CHECK(spec.add_mount(bind("")).error().code == Code::kInvalidArgument);

  Spec hidden = must_parse(R"({"mounts":[{"destination":"/a/b/c"},{"destination":"/a"}]})");
  REQUIRE(hidden.add_mount(bind("/a/b")));
  CHECK(destinations(hidden) == std::vector<std::string>{"/a/b/c", "/a", "/a/b"});

  Spec none = must_parse("{}");
  REQUIRE(none.add_mount(bind("/x")));
  CHECK(none.dump() == R"({"mounts":[{"destination":"/x","type":"bind","source":"/src",)"
                       R"("options":["rbind","ro"]}]})");
}

TEST_CASE("oci spec: a mount is replaced in its place") {
  Spec spec = must_parse(R"({"mounts":[{"destination":"/dev/shm"},{"destination":"/dev/shm/"},
      {"destination":"/b"}]})");
  REQUIRE(spec.replace_mount(bind("/dev/shm")));
  CHECK(spec.mounts().value().at(0).source.empty());
  CHECK(spec.mounts().value().at(1) == bind("/dev/shm"));
  CHECK(spec.replace_mount(bind("/c")).error().code == Code::kNotFound);
}

TEST_CASE("oci spec: id mappings are seen") {
  const Spec mapped =
      must_parse(R"({"linux":{"uidMappings":[{"containerID":0,"hostID":65536,"size":4294967295}],)"
                 R"("gidMappings":[{}]}})");
  CHECK(mapped.uid_mappings().value() == std::vector<IdMapping>{{0, 65536, 4294967295}});
  CHECK(mapped.gid_mappings().value() == std::vector<IdMapping>{{}});
  CHECK(must_parse(R"({"linux":{"uidMappings":[]}})").uid_mappings().value().empty());
  CHECK_FALSE(Spec::parse(R"({"linux":{"uidMappings":[{"hostid":0}]}})"));
  CHECK_FALSE(must_parse(R"({"linux":{"uidMappings":[{"size":-1}]}})").uid_mappings());
  CHECK_FALSE(must_parse(R"({"linux":{"gidMappings":[7]}})").gid_mappings());
  const auto idmapped = [](std::string_view mount) {
    return must_parse(fmt::format(R"({{"mounts":[{{"destination":"/a",{}}}]}})", mount))
        .has_idmapped_mounts()
        .value();
  };
  CHECK(idmapped(R"("options":["rbind","idmap"])"));
  CHECK(idmapped(R"("options":["ridmap=x"])"));
  CHECK(idmapped(R"("uidMappings":[{"containerID":0}])"));
  CHECK(idmapped(R"("gidMappings":[{}])"));
  CHECK_FALSE(idmapped(R"("uidMappings":[],"options":["rw"])"));
}

TEST_CASE("oci spec: the form of cgroupsPath tells the cgroup driver") {
  CHECK(is_systemd_cgroups_path("kubepods.slice:cri-containerd:abc"));
  CHECK(is_systemd_cgroups_path(":cri-containerd:abc"));
  CHECK_FALSE(is_systemd_cgroups_path("/k8s.io/abc"));
  CHECK_FALSE(is_systemd_cgroups_path("/a:b:c"));
  CHECK_FALSE(is_systemd_cgroups_path("a.slice:b:"));
  CHECK_FALSE(is_systemd_cgroups_path("a.slice"));
  CHECK_FALSE(is_systemd_cgroups_path(""));
}

TEST_CASE("oci spec: oom_score_adj is read and replaced") {
  Spec spec = must_parse(R"({"process":{"oomScoreAdj":-998},"hooks":{"poststart":[]}})");
  CHECK(spec.oom_score_adj().value() == -998);
  REQUIRE(spec.set_oom_score_adj(-5));
  CHECK(spec.dump() == R"({"process":{"oomScoreAdj":-5},"hooks":{"poststart":[]}})");
  CHECK(must_parse("{}").oom_score_adj().value() == std::nullopt);
  CHECK_FALSE(must_parse("{}").set_oom_score_adj(1));
  CHECK_FALSE(must_parse(R"({"process":{"oomScoreAdj":-1001}})").oom_score_adj());
  CHECK_FALSE(must_parse(R"({"process":{"oomScoreAdj":"0"}})").oom_score_adj());
  CHECK_FALSE(spec.has_poststart_hooks().value());
  CHECK(must_parse(R"({"hooks":{"poststart":[{"path":"/x"}]}})").has_poststart_hooks().value());
}

}  // namespace kuasar::oci
