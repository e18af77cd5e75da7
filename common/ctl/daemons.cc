#include "ctl/daemons.h"

#include <sys/stat.h>

#include <algorithm>
#include <functional>

#include "ctl/print.h"

namespace kuasar::ctl {
namespace {

namespace fs = std::filesystem;

// The socket is a sibling of the daemon's state, and both are for root.
Error unreachable(const std::string& socket, const Error& why) {
  if (why.code == Code::kPermissionDenied) {
    return Error::make(Code::kPermissionDenied, "{}: only root may talk to a sandboxer", socket);
  }
  return Error::make(Code::kUnavailable, "no sandboxer answers on {}: {}", socket, why.message);
}

/// Something that a word may name.
struct Candidate {
  Found found;
  std::string id;
  std::vector<std::string> names;
};

Result<Found> choose(const std::vector<Candidate>& all, const std::string& word, const char* kind) {
  std::vector<const Candidate*> fits;
  const auto select = [&](const std::function<bool(const Candidate&)>& fit) {
    if (!fits.empty()) return;
    for (const Candidate& one : all) {
      if (fit(one)) fits.push_back(&one);
    }
  };
  select([&](const Candidate& one) { return one.id == word; });
  select([&](const Candidate& one) {
    return std::find(one.names.begin(), one.names.end(), word) != one.names.end();
  });
  select([&](const Candidate& one) { return !word.empty() && one.id.starts_with(word); });
  if (fits.empty()) {
    return fail(Code::kNotFound, "no {} \"{}\" (\"kuasar-ctl list\" shows them)", kind, word);
  }
  if (fits.size() == 1) return fits[0]->found;
  constexpr std::size_t kShown = 5;
  std::string names;
  for (std::size_t i = 0; i < std::min(fits.size(), kShown); ++i) {
    names += (i > 0 ? ", " : "") + short_id(fits[i]->id);
  }
  if (fits.size() > kShown) names += ", ...";
  return fail(Code::kInvalidArgument, "\"{}\" fits {} {}s ({}): give more of the id", word,
              fits.size(), kind, names);
}

}  // namespace

std::vector<std::string> find_sockets(const fs::path& run) {
  std::vector<std::string> found;
  std::error_code ec;
  for (fs::directory_iterator it(run, ec); !ec && it != fs::directory_iterator();
       it.increment(ec)) {
    if (!it->path().filename().native().starts_with("kuasar-")) continue;
    const fs::path socket = it->path() / "ctl.sock";
    struct stat st {};
    if (::lstat(socket.c_str(), &st) == 0 && S_ISSOCK(st.st_mode)) found.push_back(socket.native());
  }
  std::sort(found.begin(), found.end());
  return found;
}

Result<std::unique_ptr<Daemon>> Daemon::connect(const std::string& socket) {
  std::unique_ptr<Daemon> daemon(new Daemon(socket));
  auto client = daemon->run(ttrpc::Client::connect(socket, kTimeout));
  if (!client) return fail(unreachable(socket, client.error()));
  daemon->client_ = std::move(*client);
  return daemon;
}

Daemon::~Daemon() {
  client_.reset();
  // What the end of the connection wakes up.
  io_.restart();
  io_.poll();
}

Result<Found> find_pod(const std::vector<PodList>& lists, const std::string& word) {
  std::vector<Candidate> all;
  for (std::size_t i = 0; i < lists.size(); ++i) {
    for (const api::Pod& pod : lists[i].pods) {
      const auto& metadata = pod.state().config().metadata();
      all.push_back({{i, pod.state().id(), ""},
                     pod.state().id(),
                     {metadata.name(), metadata.namespace_() + "/" + metadata.name()}});
    }
  }
  return choose(all, word, "pod");
}

Result<Found> find_container(const std::vector<PodList>& lists, const std::string& word) {
  const std::size_t slash = word.rfind('/');
  std::optional<Found> pod;
  if (slash != std::string::npos) {
    TRY(pod, find_pod(lists, word.substr(0, slash)));
  }
  const std::string rest = slash == std::string::npos ? word : word.substr(slash + 1);
  std::vector<Candidate> all;
  for (std::size_t i = 0; i < lists.size(); ++i) {
    for (const api::Pod& one : lists[i].pods) {
      if (pod && (pod->list != i || pod->pod != one.state().id())) continue;
      for (const api::Container& container : one.containers()) {
        Candidate candidate{
            {i, one.state().id(), container.state().id()}, container.state().id(), {}};
        if (pod) candidate.names.push_back(container.name());
        all.push_back(std::move(candidate));
      }
    }
  }
  return choose(all, rest, "container");
}

DaemonHealth ask_health(const std::string& socket) {
  DaemonHealth one{socket, "", {}};
  auto daemon = Daemon::connect(socket);
  auto answer = daemon ? (*daemon)->call<api::HealthResponse>("Health", api::HealthRequest())
                       : Result<api::HealthResponse>(fail(daemon.error()));
  if (answer) {
    one.health = std::move(*answer);
  } else {
    one.error = answer.error().message;
  }
  return one;
}

pid_t listener_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) return 0;
  std::memcpy(address.sun_path, path.data(), path.size());
  const UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd) return 0;
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return 0;
  }
  ucred peer{};
  socklen_t size = sizeof peer;
  if (::getsockopt(fd.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return 0;
  return peer.pid;
}

}  // namespace kuasar::ctl
