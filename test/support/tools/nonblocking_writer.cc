// A workload that sets O_NONBLOCK on its standard output, as event-driven programs do, and writes
// N bytes to it: N - 1 times 'x' and a newline. Static: it runs in any image.

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <string>

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const std::size_t size = std::strtoul(argv[1], nullptr, 10);
  std::string text(size, 'x');
  text.back() = '\n';
  if (::fcntl(STDOUT_FILENO, F_SETFL, ::fcntl(STDOUT_FILENO, F_GETFL) | O_NONBLOCK) != 0) return 3;
  for (std::size_t done = 0; done < size;) {
    const ssize_t n = ::write(STDOUT_FILENO, text.data() + done, size - done);
    if (n > 0) {
      done += static_cast<std::size_t>(n);
    } else if (errno == EAGAIN) {
      pollfd entry{STDOUT_FILENO, POLLOUT, 0};
      ::poll(&entry, 1, -1);
    } else {
      return 4;
    }
  }
  return 0;
}
