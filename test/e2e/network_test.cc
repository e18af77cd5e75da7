#include <arpa/inet.h>
#include <sys/ipc.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <filesystem>
#include <string>

#include "base/unique_fd.h"
#include "e2e/table.h"
#include "support/wait.h"

// The pod's network is CNI's and containerd's; the sandboxer lets containers in and lets go of it.

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;

std::string ip_of(Case& e, const Pod& pod) {
  const auto status = e.cri().pod_status(pod.id);
  REQUIRE(status.has_value());
  return status->status().network().ip();
}

// GET / by HTTP/1.0; empty on failure.
std::string http_get(const std::string& ip, int port) {
  const UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const timeval patience{2, 0};
  ::setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  ::setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  ::inet_pton(AF_INET, ip.c_str(), &address.sin_addr);
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return "";
  }
  const std::string request = "GET /README HTTP/1.0\r\n\r\n";
  if (::write(fd.get(), request.data(), request.size()) < 0) return "";
  std::string answer;
  char buffer[4096];
  for (ssize_t got = 0; (got = ::read(fd.get(), buffer, sizeof buffer)) > 0;) {
    answer.append(buffer, static_cast<std::size_t>(got));
  }
  return answer;
}

Container serve(Case& e, const Pod& pod) {
  return e.start(pod, e.container_config({"httpd", "-f", "-p", "8080", "-h", "/srv"}, kToolsImage));
}

// Who of the machine still knows a network namespace: processes in it, or with an fd on it.
std::vector<std::string> holders(const std::string& netns) {
  std::vector<std::string> result;
  std::error_code ec;
  for (const auto& entry : fs::directory_iterator("/proc", ec)) {
    const std::string pid = entry.path().filename();
    if (pid.find_first_not_of("0123456789") != std::string::npos) continue;
    if (fs::read_symlink(entry.path() / "ns/net", ec) == netns) result.push_back("process " + pid);
    for (const auto& fd : fs::directory_iterator(entry.path() / "fd", ec)) {
      if (fs::read_symlink(fd.path(), ec) == netns) result.push_back("fd of " + pid);
    }
  }
  if (read_text("/proc/self/mountinfo").find(netns) != std::string::npos) {
    result.emplace_back("a mount");
  }
  return result;
}

}  // namespace

TEST_CASE("network: the host and other pods reach a pod's IP on the CNI bridge", "[e2e][table]") {
  run_case([](Case& e) {
    const Pod server = e.run_pod();
    const std::string ip = ip_of(e, server);
    CHECK(ip.starts_with(e.lab().subnet_prefix() + "."));
    CHECK(e.output_of(server, "ip -4 addr show eth0 | grep -c 'inet " + ip + "/'") == "1");
    serve(e, server);
    std::string answer;
    CHECK(wait_until([&] { return !(answer = http_get(ip, 8080)).empty(); },
                     std::chrono::seconds(10)));
    CHECK(answer.find("written into the image") != std::string::npos);

    const Pod client = e.run_pod();
    CHECK(ip_of(e, client) != ip);
    CHECK(e.output_of(client, "wget -q -O - http://" + ip + ":8080/README") ==
          "written into the image");
    // Containers of one pod reach each other on the loopback.
    CHECK(e.output_of(server, "wget -q -O - http://127.0.0.1:8080/README") ==
          "written into the image");
  });
}

TEST_CASE("network: a pod in the host's network is reached on the host", "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod(e.host_network_config());
    e.start(pod, e.container_config({"httpd", "-f", "-p", "127.0.0.1:38080", "-h", "/srv"},
                                    kToolsImage));
    CHECK(wait_until(
        [&] {
          return http_get("127.0.0.1", 38080).find("written into the image") != std::string::npos;
        },
        std::chrono::seconds(10)));
  });
}

TEST_CASE("T24: a pod's namespaces are its own, for every container, and not the host's",
          "[e2e][table]") {
  run_case([](Case& e) {
    const Pod one = e.run_pod();
    const Pod two = e.run_pod();
    const auto namespaces = [&](const Pod& pod) {
      return parse_pairs(e.output_of(
          pod, "for ns in net ipc uts; do echo $ns=$(readlink /proc/self/ns/$ns); done"));
    };
    auto first = namespaces(one);
    CHECK(first == namespaces(one));
    auto other = namespaces(two);
    for (const char* kind : {"net", "ipc", "uts"}) {
      CAPTURE(kind);
      CHECK_FALSE(first[kind].empty());
      CHECK(first[kind] != other[kind]);
      CHECK(first[kind] != host_namespace(kind));
    }
  });
}

TEST_CASE("T24 T32: every NODE is the host's namespace, and takes no other with it",
          "[e2e][table]") {
  run_case([](Case& e) {
    for (const int bits : {0, 1, 2, 3, 4, 5, 6, 7}) {
      const bool net = (bits & 1) != 0;
      const bool ipc = (bits & 2) != 0;
      const bool pid = (bits & 4) != 0;
      CAPTURE(net, ipc, pid);
      cri::PodSandboxConfig config = net ? e.host_network_config() : e.pod_config();
      if (ipc) namespace_options(config)->set_ipc(cri::NODE);
      if (pid) namespace_options(config)->set_pid(cri::NODE);
      const Pod pod = e.run_pod(config);
      cri::ContainerConfig container = e.container_config(
          {"sh", "-c",
           "for ns in net ipc uts pid mnt; do echo $ns=$(readlink /proc/self/ns/$ns); done"});
      *namespace_options(container) = *namespace_options(config);
      const Finished end = e.run(pod, container);
      auto seen = parse_pairs(end.log.out);
      for (const auto& [kind, host] :
           {std::pair{"net", net}, {"ipc", ipc}, {"uts", net}, {"pid", pid}, {"mnt", false}}) {
        CAPTURE(kind);
        CHECK_FALSE(seen[kind].empty());
        CHECK((seen[kind] == host_namespace(kind)) == host);
      }
      e.remove(pod);
    }
  });
}

TEST_CASE("ipc NODE: a segment of the host is seen, and /dev/shm is the host's", "[e2e][table]") {
  run_case([](Case& e) {
    const int segment = ::shmget(IPC_PRIVATE, 4096, IPC_CREAT | 0600);
    REQUIRE(segment >= 0);
    const std::string listed = "NR > 1 && $2 == " + std::to_string(segment);
    const std::string count = "awk '" + listed + " { n++ } END { print n + 0 }' /proc/sysvipc/shm";
    cri::PodSandboxConfig config = e.pod_config();
    namespace_options(config)->set_ipc(cri::NODE);
    const Pod pod = e.run_pod(config);
    cri::ContainerConfig container =
        e.container_config({"sh", "-c", count + "; stat -c %d /dev/shm"});
    namespace_options(container)->set_ipc(cri::NODE);
    const Finished end = e.run(pod, container);
    CHECK(e.output_of(e.run_pod(), count) == "0");
    ::shmctl(segment, IPC_RMID, nullptr);
    struct stat st {};
    REQUIRE(::stat("/dev/shm", &st) == 0);
    CHECK(end.log.out == "1\n" + std::to_string(st.st_dev) + "\n");
  });
}

TEST_CASE("T30: nobody holds the network namespace after StopPodSandbox", "[e2e][table]") {
  run_case([](Case& e) {
    const Pod pod = e.run_pod();
    const Container container = e.shell(pod, "readlink /proc/self/ns/net; exec sleep 3600");
    e.await_output(container, "]\n");
    const std::string netns = trimmed(e.log(container).out);
    CHECK_FALSE(holders(netns).empty());
    e.stop(pod);
    const std::vector<std::string> left = holders(netns);
    INFO((left.empty() ? "" : left.front()));
    CHECK(left.empty());
    // The pod is still known and answers.
    CHECK(e.state(pod) == cri::SANDBOX_NOTREADY);
  });
}

}  // namespace kuasar::test
