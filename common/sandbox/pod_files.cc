#include "sandbox/pod_files.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <string_view>
#include <utility>

#include "base/files.h"
#include "cri/runtime/v1/api.pb.h"
#include "os/selinux.h"

namespace kuasar::sandbox {
namespace {

namespace cri = ::runtime::v1;

// Linux's HOST_NAME_MAX (gethostname(2)); one byte more and sethostname(2) fails.
constexpr std::size_t kMaxHostname = 64;
// For what containers add to their files. The kernel counts in pages.
constexpr std::uint64_t kSpareRoom = 64U << 10;

const cri::NamespaceOption& namespace_options(const cri::PodSandboxConfig& config) {
  return config.linux().security_context().namespace_options();
}

tl::unexpected<Error> not_supported(std::string_view field, std::string_view value) {
  return fail(Code::kUnimplemented, "linux.security_context.{}: {} is not supported", field, value);
}

std::string mode_name(int mode) {
  const std::string& name = cri::NamespaceMode_Name(static_cast<cri::NamespaceMode>(mode));
  return name.empty() ? fmt::format("mode {}", mode) : name;
}

bool is_control(char c) {
  return static_cast<unsigned char>(c) < 0x20 || c == 0x7f;
}

Result<> check_hostname(const std::string& hostname) {
  if (hostname.size() > kMaxHostname) {
    return fail(Code::kInvalidArgument, "hostname has {} bytes, the kernel takes {}",
                hostname.size(), kMaxHostname);
  }
  const bool clean = std::all_of(hostname.begin(), hostname.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '.' || c == '_';
  });
  if (!clean) {
    return fail(Code::kInvalidArgument, "hostname has a character outside [A-Za-z0-9._-]");
  }
  return {};
}

// One line of resolv.conf(5); empty items are left out, and with them an empty line.
template <typename Items>
Result<std::vector<std::string>> dns_items(std::string_view field, const Items& items) {
  std::vector<std::string> kept;
  for (const std::string& item : items) {
    if (std::any_of(item.begin(), item.end(), is_control)) {
      return fail(Code::kInvalidArgument, "dns_config.{} has a line break or control character",
                  field);
    }
    if (!item.empty()) kept.push_back(item);
  }
  return kept;
}

Result<std::string> resolv_conf(const cri::DNSConfig& dns) {
  TRY(const std::vector<std::string> searches, dns_items("searches", dns.searches()));
  TRY(const std::vector<std::string> servers, dns_items("servers", dns.servers()));
  TRY(const std::vector<std::string> options, dns_items("options", dns.options()));
  std::string text;
  if (!searches.empty()) text += fmt::format("search {}\n", fmt::join(searches, " "));
  for (const std::string& server : servers) text += fmt::format("nameserver {}\n", server);
  if (!options.empty()) text += fmt::format("options {}\n", fmt::join(options, " "));
  return text;
}

Result<std::string> read_if_exists(const std::string& path) {
  Result<std::string> text = read_file(path, 1U << 20);
  if (!text && text.error().err == ENOENT) return std::string();
  return text;
}

}  // namespace

bool uses_host_network(const cri::PodSandboxConfig& config) {
  return namespace_options(config).network() == cri::NODE;
}

bool uses_host_ipc(const cri::PodSandboxConfig& config) {
  return namespace_options(config).ipc() == cri::NODE;
}

bool uses_host_pid(const cri::PodSandboxConfig& config) {
  return namespace_options(config).pid() == cri::NODE;
}

Result<> check_supported(const cri::PodSandboxConfig& config) {
  const cri::NamespaceOption& options = namespace_options(config);
  if (options.network() != cri::POD && options.network() != cri::NODE) {
    return not_supported("namespace_options.network", mode_name(options.network()));
  }
  if (options.pid() != cri::POD && options.pid() != cri::CONTAINER && options.pid() != cri::NODE) {
    return not_supported("namespace_options.pid", mode_name(options.pid()));
  }
  if (options.ipc() != cri::POD && options.ipc() != cri::NODE) {
    return not_supported("namespace_options.ipc", mode_name(options.ipc()));
  }
  return {};
}

Result<HostFiles> read_host_files() {
  HostFiles host;
  utsname names{};
  if (::uname(&names) != 0) return fail_errno("uname");
  host.hostname = names.nodename;
  TRY(host.hosts, read_if_exists("/etc/hosts"));
  TRY(host.resolv_conf, read_if_exists("/etc/resolv.conf"));
  return host;
}

Result<PodFiles> plan_pod_files(const cri::PodSandboxConfig& config, const HostFiles& host) {
  PodFiles files;
  CHECK_OK(check_hostname(config.hostname()));
  if (!config.hostname().empty() && uses_host_network(config)) {
    // It has the host's UTS namespace; /etc/hostname alone would contradict that.
    return fail(Code::kInvalidArgument,
                "hostname \"{}\": unable to set hostname without a private UTS namespace; the pod "
                "uses the host's network",
                config.hostname());
  }
  const bool hosts_own = config.hostname().empty();
  files.hostname = hosts_own ? host.hostname : config.hostname();
  files.hostname_file = files.hostname + "\n";
  files.hosts_file = host.hosts;
  files.resolv_conf_file = host.resolv_conf;
  if (config.has_dns_config()) {
    TRY(files.resolv_conf_file, resolv_conf(config.dns_config()));
  }
  return files;
}

std::uint64_t pod_files_room(const PodFiles& files) {
  // Each is written beside its name first.
  const std::uint64_t texts =
      files.hostname_file.size() + files.hosts_file.size() + files.resolv_conf_file.size();
  return 2 * texts + kSpareRoom;
}

Result<> write_pod_files(const StatePaths& paths, const std::string& sandbox_id,
                         const PodFiles& files, const PodRoot& root, const std::string& label) {
  const std::pair<StatePaths::Path, const std::string&> all[] = {
      {paths.hostname(sandbox_id), files.hostname_file},
      {paths.hosts(sandbox_id), files.hosts_file},
      {paths.resolv_conf(sandbox_id), files.resolv_conf_file}};
  for (const auto& [path, text] : all) {
    CHECK_OK(write_file_atomic(path, text, 0644));
    CHECK_OK(os::set_selinux_label(path.native(), label));
    if (root.uid == 0 && root.gid == 0) continue;
    if (::chown(path.c_str(), root.uid, root.gid) != 0) return fail_errno("chown", path.native());
  }
  return {};
}

std::vector<InjectedMount> plan_pod_mounts(const StatePaths& paths, const std::string& sandbox_id,
                                           const std::set<std::string>& destinations,
                                           bool readonly_rootfs, bool own_shm) {
  std::set<std::string> taken;
  for (const std::string& destination : destinations) {
    std::string normal = std::filesystem::path(destination).lexically_normal().native();
    if (normal.size() > 1 && normal.ends_with('/')) normal.pop_back();
    taken.insert(std::move(normal));
  }
  const char* const access = readonly_rootfs ? "ro" : "rw";
  const auto options = [](const char* mode) -> std::vector<std::string> {
    return {"rbind", "rprivate", "nosuid", "nodev", "noexec", mode};
  };
  const InjectedMount all[] = {
      {"/etc/hostname", paths.hostname(sandbox_id).native(), options(access)},
      {"/etc/hosts", paths.hosts(sandbox_id).native(), options(access)},
      {"/etc/resolv.conf", paths.resolv_conf(sandbox_id).native(), options(access)},
      {"/dev/shm", paths.shm(sandbox_id).native(), options("rw")},
  };
  if (!own_shm) taken.insert("/dev/shm");
  std::vector<InjectedMount> plan;
  for (const InjectedMount& mount : all) {
    if (taken.count(mount.destination) == 0) plan.push_back(mount);
  }
  return plan;
}

}  // namespace kuasar::sandbox
