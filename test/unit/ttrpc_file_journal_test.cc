// The journal file: what one process wrote down, the next one reads.

#include <google/protobuf/wrappers.pb.h>
#include <signal.h>
#include <sys/resource.h>

#include <catch2/catch_test_macros.hpp>
#include <filesystem>
#include <fstream>
#include <vector>

#include "async/event.h"
#include "base/files.h"
#include "ttrpc/file_journal.h"
#include "ttrpc/server.h"
#include "unit/ttrpc_fixture.h"

namespace kuasar::test {
namespace {

namespace fs = std::filesystem;
using ttrpc::CallContext;
using ttrpc::FileJournal;
using ttrpc::Journal;
using ttrpc::Server;

struct Directory {
  Directory() {
    std::string name = (fs::temp_directory_path() / "kuasar-journal-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path = name;
  }
  ~Directory() { fs::remove_all(path); }
  fs::path file() const { return path / "task-1"; }
  std::unique_ptr<FileJournal> open() const {
    Result<std::unique_ptr<FileJournal>> journal = FileJournal::open(file());
    REQUIRE(journal);
    return std::move(*journal);
  }
  fs::path path;
};

std::vector<std::string> frames(Journal& journal) {
  std::vector<std::string> all;
  for (const Journal::Entry& entry : journal.unanswered()) all.push_back(entry.frame);
  return all;
}

TEST_CASE("ttrpc file journal: the next process finds what is unanswered, in order", "[ttrpc]") {
  const Directory dir;
  {
    const auto journal = dir.open();
    CHECK(journal->unanswered().empty());
    CHECK(journal->last_stream() == 0);
    for (const std::uint32_t stream : {1U, 3U, 5U, 7U}) {
      REQUIRE(journal->append(stream, std::string(stream, 'x')));
    }
    journal->strike(3);
    journal->strike(99);
    journal->mark_applied(5);
  }
  CHECK((fs::status(dir.file()).permissions() & fs::perms::all) ==
        (fs::perms::owner_read | fs::perms::owner_write));
  const auto journal = dir.open();
  CHECK(frames(*journal) == std::vector<std::string>{"x", "xxxxx", "xxxxxxx"});
  CHECK(journal->unanswered()[1].applied);
  CHECK_FALSE(journal->unanswered()[2].applied);
  CHECK(journal->unanswered()[0].age >= std::chrono::nanoseconds(0));
  CHECK(journal->last_stream() == 7);
  CHECK_FALSE(journal->torn());
  journal->discard();
  CHECK_FALSE(fs::exists(dir.file()));
  journal->discard();
}

// No file gets longer than `bytes` while it lives, as on a disk that is full.
class NoRoom {
 public:
  explicit NoRoom(rlim_t bytes) : handler_(::signal(SIGXFSZ, SIG_IGN)) {
    REQUIRE(::getrlimit(RLIMIT_FSIZE, &before_) == 0);
    const rlimit small{bytes, before_.rlim_max};
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &small) == 0);
  }
  ~NoRoom() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    ::signal(SIGXFSZ, handler_);
  }

 private:
  sighandler_t handler_;
  rlimit before_{};
};

TEST_CASE("ttrpc file journal: without any room the connection is served all the same", "[ttrpc]") {
  const Directory dir;
  {
    std::unique_ptr<FileJournal> journal;
    {
      const NoRoom full(0);
      journal = dir.open();
      REQUIRE(journal->append(1, "lost"));
      journal->strike(1);
      REQUIRE(journal->append(3, "lost, too"));
    }
    CHECK(fs::file_size(dir.file()) == 0);
    {
      const NoRoom for_the_header_only(40);
      REQUIRE(journal->append(5, "lost as well"));
    }
    REQUIRE(journal->append(7, "kept"));
  }
  const auto journal = dir.open();
  CHECK(frames(*journal) == std::vector<std::string>{"kept"});
  CHECK(journal->last_stream() == 7);
}

TEST_CASE("D6 ttrpc file journal: what was under way in two crashes is suspect", "[ttrpc]") {
  const Directory dir;
  const auto after = [&](bool crashed) {
    Result<std::unique_ptr<FileJournal>> journal = FileJournal::open(dir.file(), {}, crashed);
    REQUIRE(journal);
    return std::move(*journal);
  };
  {
    const auto journal = dir.open();
    REQUIRE(journal->append(1, "first"));
    REQUIRE(journal->append(3, "second"));
  }
  {
    const auto journal = after(true);
    journal->mark_applied(3);
    REQUIRE(journal->append(5, "third"));
    for (const Journal::Entry& entry : journal->unanswered()) CHECK_FALSE(entry.suspect);
  }
  {
    // Killed, not crashed: nothing is held against anybody.
    const auto journal = after(false);
    for (const Journal::Entry& entry : journal->unanswered()) CHECK_FALSE(entry.suspect);
  }
  const auto journal = after(true);
  const std::vector<Journal::Entry> left = journal->unanswered();
  REQUIRE(left.size() == 3);
  CHECK((left[0].suspect && !left[0].applied));
  CHECK((left[1].suspect && left[1].applied));
  CHECK_FALSE(left[2].suspect);
}

TEST_CASE("ttrpc file journal: it stays short, and never forgets the last stream", "[ttrpc]") {
  const Directory dir;
  const std::string frame(1000, 'f');
  {
    const auto journal = dir.open();
    REQUIRE(journal->append(1, "a Wait that stays"));
    for (std::uint32_t stream = 3; stream < 3003; stream += 2) {
      REQUIRE(journal->append(stream, frame));
      if (stream == 2001) journal->mark_applied(1);
      journal->strike(stream);
    }
    CHECK(fs::file_size(dir.file()) < 200'000);
  }
  {
    const auto journal = dir.open();
    CHECK(frames(*journal) == std::vector<std::string>{"a Wait that stays"});
    CHECK(journal->unanswered()[0].applied);
    CHECK(journal->last_stream() == 3001);
    journal->strike(1);
    CHECK(fs::file_size(dir.file()) == 32);
  }
  CHECK(dir.open()->last_stream() == 3001);
}

TEST_CASE("ttrpc file journal: half an entry is ignored, the rest is served", "[ttrpc]") {
  const Directory dir;
  {
    const auto journal = dir.open();
    REQUIRE(journal->append(1, "first"));
    REQUIRE(journal->append(3, "second"));
  }
  const std::string whole = read_file(dir.file()).value();
  const std::size_t first = 32 + 24 + 5;
  for (std::size_t size = first; size < whole.size(); ++size) {
    REQUIRE(write_file(dir.file(), whole.substr(0, size)));
    {
      const auto journal = dir.open();
      CHECK(frames(*journal) == std::vector<std::string>{"first"});
      CHECK(journal->last_stream() == 1);
      REQUIRE(journal->append(3, "again"));
    }
    CHECK(frames(*dir.open()) == std::vector<std::string>{"first", "again"});
  }
  // A flipped byte anywhere in the second entry but in its state word.
  for (std::size_t at = first + 4; at < whole.size(); ++at) {
    std::string damaged = whole;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x41);
    REQUIRE(write_file(dir.file(), damaged));
    CHECK(frames(*dir.open()) == std::vector<std::string>{"first"});
  }
}

TEST_CASE("ttrpc file journal: what is no journal is refused in words", "[ttrpc]") {
  const Directory dir;
  for (const std::string& content :
       {std::string("x"), std::string(31, '\0'), std::string(100, 'z'), std::string("KSRJRNL2")}) {
    REQUIRE(write_file(dir.file(), content));
    const auto refused = FileJournal::open(dir.file());
    REQUIRE_FALSE(refused);
    CHECK(refused.error().code == Code::kFailedPrecondition);
    CHECK(refused.error().message.find("task-1") != std::string::npos);
    // Left for somebody to look at.
    CHECK(read_file(dir.file()).value() == content);
  }
}

TEST_CASE("ttrpc file journal: a death inside a frame is seen", "[ttrpc]") {
  const Directory dir;
  {
    const auto journal = dir.open();
    journal->set_torn(Journal::Direction::kInput, true);
    journal->set_torn(Journal::Direction::kOutput, true);
    journal->set_torn(Journal::Direction::kInput, false);
  }
  {
    const auto journal = dir.open();
    CHECK(journal->torn());
    journal->set_torn(Journal::Direction::kOutput, false);
  }
  CHECK_FALSE(dir.open()->torn());
}

constexpr const char* kService = "test.Service";

// A server process: what it ran.
struct Process {
  Process(asio::any_io_executor executor, const Directory& dir) : server(std::move(executor)) {
    server.add_raw(kService, "Call", [this](std::string data, CallContext context) {
      return call(std::move(data), std::move(context));
    });
    journal = dir.open();
  }
  Task<Result<std::string>> call(std::string data, CallContext context) {
    ran.push_back(data + (context.redelivered ? " redelivered" : "") +
                  (context.applied ? " applied" : ""));
    if (data == "kill" && context.mark_applied) context.mark_applied();
    if (data != "quick") co_await gate.wait();
    co_return data;
  }
  Server server;
  Event gate;
  std::unique_ptr<FileJournal> journal;
  std::vector<std::string> ran;
};

// 0 when the connection has ended.
Task<std::uint32_t> next_stream(RawPeer& peer) {
  const std::optional<RawPeer::Answer> answer = co_await peer.read();
  co_return answer ? answer->header.stream : 0;
}

TEST_CASE("ttrpc file journal: the next process answers what the last one left", "[ttrpc]") {
  run_io([]() -> Task<> {
    const Directory dir;
    auto [ours, theirs] = socket_pair();
    UniqueFd held(::dup(ours.get()));
    RawPeer peer(std::move(theirs));
    const auto executor = co_await asio::this_coro::executor;
    {
      Process first(executor, dir);
      first.server.adopt(std::move(ours), std::move(first.journal));
      co_await expect(peer.write(request_frame(1, kService, "Call", "wait")));
      co_await expect(peer.write(request_frame(3, kService, "Call", "quick")));
      co_await expect(peer.write(request_frame(5, kService, "Call", "kill")));
      const std::uint32_t quick = co_await next_stream(peer);
      CHECK(quick == 3);
      co_await expect(eventually([&first] { return first.ran.size() == 3; }));
      // A stop with no patience: as little is left as after a kill.
      co_await first.server.stop(0ns);
    }
    // Meanwhile one more comes; the connection is open as somebody holds it.
    co_await expect(peer.write(request_frame(7, kService, "Call", "quick")));
    {
      Process second(executor, dir);
      CHECK(second.journal->unanswered().size() == 2);
      second.server.adopt(std::move(held), std::move(second.journal));
      const std::uint32_t late = co_await next_stream(peer);
      CHECK(late == 7);
      CHECK(second.ran ==
            std::vector<std::string>{"wait redelivered", "kill redelivered applied", "quick"});
      second.gate.set();
      const std::uint32_t wait = co_await next_stream(peer);
      const std::uint32_t kill = co_await next_stream(peer);
      CHECK(wait == 1);
      CHECK(kill == 5);
      peer.close();
      co_await expect(eventually([&dir] { return !fs::exists(dir.file()); }));
      co_await second.server.stop(1s);
    }
  });
}

}  // namespace
}  // namespace kuasar::test
