#pragma once

#include <array>
#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/basic_stream_socket.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <string>
#include <string_view>

#include "async/task.h"
#include "base/error.h"
#include "base/unique_fd.h"
#include "ttrpc/frame.h"
#include "ttrpc/journal.h"

namespace kuasar::ttrpc {

/// A frame up to this size is peeked whole and journalled before it is consumed.
inline constexpr std::size_t kPeekLimit = 64U << 10;
/// One send() of at most this many bytes on AF_UNIX is all or nothing (measured on Linux 6.18 up
/// to about 36 kB).
inline constexpr std::size_t kSendPiece = 32U << 10;
/// Output that may wait for a peer that does not read; one byte more closes its connection. Four
/// of the biggest answers, or some 200,000 refusals.
inline constexpr std::size_t kMaxQueuedOutput = 16U << 20;

/// What a connection tells its user, always from the io thread.
class ConnectionUser {
 public:
  virtual ~ConnectionUser() = default;
  /// A whole frame, whatever its type; `frame` is valid during the call. May send() or close().
  virtual void on_frame(const FrameReader::Frame& frame) = 0;
  /// Once, when the connection ends for whatever reason; `why` is kUnavailable or says more.
  virtual void on_closed(const Error& why) = 0;
  /// The output queue has become empty.
  virtual void on_flushed() {}
};

/// One AF_UNIX stream socket that carries ttrpc frames. Frames are read as they come and handed
/// to the user; output leaves in order, each frame of up to kSendPiece bytes by one non-blocking
/// send(). With a journal, input follows peek, journal, consume (journal.h). Shared by its user
/// and by the operations under way; lives on the io thread. Any failure closes it for good.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  /// Takes a connected AF_UNIX stream socket. `journal` may be null.
  static Result<std::shared_ptr<Connection>> adopt(const asio::any_io_executor& executor,
                                                   UniqueFd socket,
                                                   std::unique_ptr<Journal> journal);

  /// Whom to tell of what happens before start().
  void set_user(std::weak_ptr<ConnectionUser> user);
  /// Begins to read. The user is not kept alive; once it is gone the connection closes.
  void start(std::weak_ptr<ConnectionUser> user);
  /// Queues one whole frame that answers (or opens) `stream`. After the end it does nothing.
  void send(std::uint32_t stream, std::string frame);
  /// Reads no further; what was not read stays in the socket.
  void stop_reading();
  void close(Error why);
  /// Closes our end only: what the journal holds is for a later process, if there is a journal.
  void let_go();

  IoExecutor get_executor() { return socket_.get_executor(); }
  bool closed() const { return closed_; }
  bool flushed() const { return output_.empty(); }
  Journal* journal() { return journal_.get(); }

 private:
  struct Output {
    std::uint32_t stream;
    std::string frame;
    std::size_t sent = 0;
  };

  using Socket = asio::basic_stream_socket<asio::generic::stream_protocol, IoExecutor>;

  Connection(Socket socket, std::unique_ptr<Journal> journal);

  void end(Error why);
  bool peeking() const { return journal_ != nullptr && !plain_; }
  void read_more();
  void on_read(const boost::system::error_code& ec, std::size_t size);
  void take(std::string_view bytes);
  void take_what_is_there();
  void deliver();
  bool admit(const FrameReader::Frame& frame);
  bool already_journalled(const FrameHeader& header);
  bool consume(std::size_t size);
  void read_plainly();
  void watch_for_stall();
  void flush();
  void wait_until_writable();

  Socket socket_;
  std::unique_ptr<Journal> journal_;
  std::weak_ptr<ConnectionUser> user_;
  bool closed_ = false;
  bool paused_ = false;

  FrameReader reader_;
  /// Receives the first bytes; an idle connection has no bigger buffer of its own.
  std::array<char, kHeaderSize> probe_{};
  /// Whether the receive under way peeks.
  bool peeks_ = false;
  /// Bytes that were fed to the reader and are still in the socket.
  std::size_t peeked_ = 0;
  /// The frame that is being read does not fit a peek.
  bool plain_ = false;
  /// Requests up to here were journalled by an earlier process.
  std::uint32_t journalled_ = 0;
  /// Only while a frame is awaited whole.
  std::unique_ptr<IoTimer> stall_;

  /// A list: an empty deque has 600 bytes.
  std::list<Output> output_;
  std::size_t queued_ = 0;
  bool waiting_for_room_ = false;
};

}  // namespace kuasar::ttrpc
