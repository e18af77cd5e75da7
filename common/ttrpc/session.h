#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "async/event.h"
#include "async/task.h"
#include "base/call_end.h"
#include "ttrpc/connection.h"
#include "ttrpc/server.h"

namespace kuasar::ttrpc {

/// A registered method.
struct Method {
  /// The last part of the service's name.
  std::string service;
  std::string name;
  /// One of the two.
  Server::RawHandler handler;
  Server::RawWaitHandler wait_handler;
};

/// What a session needs of its server.
class SessionHost {
 public:
  virtual ~SessionHost() = default;
  /// kUnimplemented, in words, when there is no such method.
  virtual Result<std::shared_ptr<const Method>> find(const std::string& service,
                                                     const std::string& method) const = 0;
  virtual void spawn(Task<> call) = 0;
  /// A handler begins; the number is for call_ended(). Calls that wait for an event do not count.
  virtual std::uint64_t call_began() = 0;
  virtual void call_ended(std::uint64_t number) = 0;
  /// Whoever is told of calls; may be empty.
  virtual const CallObserver& observer() const = 0;
  /// A call has ended, or the output has left.
  virtual void changed() = 0;
  /// The connection is gone.
  virtual void forget(std::uint64_t peer) = 0;
};

/// The server's side of one connection: checks requests, runs their handlers, sends the answers.
/// Owned by the server while the connection is open, and by its running calls; lives on the io
/// thread.
class Session : public ConnectionUser, public std::enable_shared_from_this<Session> {
 public:
  Session(std::shared_ptr<SessionHost> host, std::shared_ptr<Connection> connection,
          std::shared_ptr<Peer> peer);

  /// Runs what the journal holds, then reads.
  void start();
  void stop_reading() { connection_->stop_reading(); }
  void close(Error why) { connection_->close(std::move(why)); }
  void let_go() { connection_->let_go(); }

  std::uint64_t peer_id() const { return peer_->id(); }
  /// Nothing is left that a stopping server waits for.
  bool idle() const { return running_ == 0 && connection_->flushed(); }

  static Task<Result<std::string>> refuse_call(std::string words);

  // ConnectionUser
  void on_frame(const FrameReader::Frame& frame) override;
  void on_closed(const Error& why) override;
  void on_flushed() override { host_->changed(); }

 private:
  struct Call;
  /// A call that waits for an event.
  struct Waiting {
    std::shared_ptr<Call> call;
    std::function<Result<std::string>()> answer;
    Event::Callback callback;
  };

  void redeliver(const Journal::Entry& entry);
  void begin(const FrameReader::Frame& frame, const Journal::Entry* redelivered);
  static Task<> run(std::shared_ptr<Session> self, std::shared_ptr<Call> call, std::string payload,
                    CallContext context);
  void wait(const std::shared_ptr<Call>& call, std::string payload, CallContext context);
  void end_wait(std::uint32_t stream);
  void finish(Call& call, const Result<std::string>& result);
  void watch_deadline(const std::shared_ptr<Call>& call,
                      std::chrono::steady_clock::time_point deadline);
  void answer(Call& call, const Result<std::string>& result);
  void refuse(std::uint32_t stream, const Error& why);
  void respond(std::uint32_t stream, const Result<std::string>& result);

  std::shared_ptr<SessionHost> host_;
  std::shared_ptr<Connection> connection_;
  std::shared_ptr<Peer> peer_;
  std::uint32_t last_stream_ = 0;
  /// Handlers' calls that were not answered yet, and those that have not ended; the calls that wait
  /// for an event, by their streams: each process of a container has one, for as long as it runs.
  std::size_t unanswered_ = 0;
  std::size_t running_ = 0;
  std::map<std::uint32_t, Waiting> waiting_;
};

}  // namespace kuasar::ttrpc
