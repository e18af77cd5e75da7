// The workload of most wasm tests: does what its arguments say, one verb after the other, as a shell
// script would. Built for wasm32-wasi.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static int failed(const char *verb, const char *what) {
  fprintf(stderr, "%s %s: %s\n", verb, what, strerror(errno));
  return 1;
}

static int copy(const char *verb, int fd, const char *name) {
  char buffer[65536];
  ssize_t n;
  while ((n = read(fd, buffer, sizeof buffer)) > 0) {
    if (write(1, buffer, (size_t)n) != n) return failed(verb, "stdout");
  }
  return n < 0 ? failed(verb, name) : 0;
}

static int put(const char *path, const char *text) {
  int fd = open(path, O_WRONLY | O_CREAT | O_APPEND, 0644);
  if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text)) return failed("put", path);
  return close(fd);
}

static int list(const char *path) {
  DIR *dir = opendir(path);
  if (dir == NULL) return failed("list", path);
  for (struct dirent *entry = readdir(dir); entry != NULL; entry = readdir(dir)) {
    if (entry->d_name[0] != '.') printf("%s\n", entry->d_name);
  }
  return closedir(dir);
}

static int print_random(void) {
  unsigned char bytes[16];
  if (getentropy(bytes, sizeof bytes) != 0) return failed("random", "getentropy");
  for (size_t i = 0; i < sizeof bytes; ++i) printf("%02x", bytes[i]);
  printf("\n");
  return 0;
}

// Takes memory and touches it until there is none.
static int hog(void) {
  // Seen by others, or the compiler would take nothing at all.
  static char *volatile block;
  for (size_t taken = 0;; taken += 1 << 20) {
    block = malloc(1 << 20);
    if (block == NULL) {
      fprintf(stderr, "hog: no more memory after %zu MiB\n", taken >> 20);
      return 3;
    }
    memset(block, 1, 1 << 20);
  }
}

// "tty" or "no tty" of each standard stream.
static int print_ttys(void) {
  for (int fd = 0; fd < 3; ++fd) printf("%d: %s\n", fd, isatty(fd) ? "tty" : "no tty");
  return 0;
}

// Waits for standard input, at most 5 s.
static int poll_stdin(void) {
  struct pollfd entry = {0, POLLIN, 0};
  int ready = poll(&entry, 1, 5000);
  if (ready < 0) return failed("poll", "stdin");
  if (ready == 1 && (entry.revents & (POLLERR | POLLNVAL)) != 0) return printf("poll: an error\n") < 0;
  return printf("%s\n", ready == 1 ? "ready" : "not ready") < 0;
}

static unsigned fib(unsigned n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }

static int do_verb(char **word, int *used) {
  const char *verb = word[0], *first = word[1] ? word[1] : "", *second = first[0] && word[2] ? word[2] : "";
  *used = 2;
  if (strcmp(verb, "print") == 0) return printf("%s\n", first) < 0;
  if (strcmp(verb, "complain") == 0) return fprintf(stderr, "%s\n", first) < 0;
  if (strcmp(verb, "exit") == 0) exit(atoi(first));
  if (strcmp(verb, "cat") == 0) {
    int fd = open(first, O_RDONLY);
    return fd < 0 ? failed("cat", first) : copy("cat", fd, first) | close(fd);
  }
  if (strcmp(verb, "list") == 0) return list(first);
  if (strcmp(verb, "mkdir") == 0) return mkdir(first, 0755) == 0 ? 0 : failed("mkdir", first);
  if (strcmp(verb, "rm") == 0) return unlink(first) == 0 ? 0 : failed("rm", first);
  if (strcmp(verb, "chdir") == 0) {
    const char *to = strcmp(first, "$PWD") == 0 ? getenv("PWD") : first;
    return to != NULL && chdir(to) == 0 ? 0 : failed("chdir", first);
  }
  if (strcmp(verb, "getenv") == 0) return printf("%s\n", getenv(first) ? getenv(first) : "-") < 0;
  if (strcmp(verb, "fib") == 0) return printf("%u\n", fib((unsigned)atoi(first))) < 0;
  if (strcmp(verb, "sleep") == 0) {
    struct timespec wait = {atoi(first), 0};
    return nanosleep(&wait, NULL);
  }
  if (strcmp(verb, "lines") == 0) {
    for (int i = 0; i < atoi(first); ++i) printf("line %d\n", i);
    return 0;
  }
  if (strcmp(verb, "note") == 0) return 0;
  if (strcmp(verb, "claim") == 0) return mkdir(first, 0755) == 0 ? 0 : printf("RAN TWICE\n") < 0;
  if (strcmp(verb, "tick") == 0) {
    // A numbered line every 100 ms, for longer than any test takes.
    struct timespec wait = {0, 100000000};
    for (int i = 0; i < 1000000; ++i) {
      printf("%s %d\n", first, i);
      fflush(stdout);
      nanosleep(&wait, NULL);
    }
    return 0;
  }
  if (strcmp(verb, "count") == 0) {
    // Numbered lines, one every 10 ms.
    struct timespec wait = {0, 10000000};
    for (int i = 0; i < atoi(first); ++i) {
      printf("%d\n", i);
      fflush(stdout);
      nanosleep(&wait, NULL);
    }
    return 0;
  }
  *used = 3;
  if (strcmp(verb, "put") == 0) return put(first, second);
  *used = 1;
  if (strcmp(verb, "stdin") == 0) return copy("stdin", 0, "stdin");
  if (strcmp(verb, "tty") == 0) return printf("%s\n", isatty(1) ? "tty" : "no tty") < 0;
  if (strcmp(verb, "ttys") == 0) return print_ttys();
  if (strcmp(verb, "poll") == 0) return poll_stdin();
  if (strcmp(verb, "random") == 0) return print_random();
  if (strcmp(verb, "hog") == 0) return hog();
  if (strcmp(verb, "spin") == 0) {
    for (volatile unsigned i = 0;; ++i) {
    }
  }
  if (strcmp(verb, "trap") == 0) __builtin_trap();
  if (strcmp(verb, "environ") == 0) {
    for (char **variable = environ; *variable; ++variable) printf("%s\n", *variable);
    return 0;
  }
  fprintf(stderr, "no verb \"%s\"\n", verb);
  return 2;
}

int main(int argc, char **argv) {
  int status = 0;
  for (int i = 1; i < argc && status == 0;) {
    int used = 1;
    status = do_verb(argv + i, &used);
    fflush(stdout);
    i += used;
  }
  return status;
}

// For "tool.wasm#answer".
__attribute__((export_name("answer"))) void answer(void) {
  const char text[] = "the answer is 42\n";
  if (write(1, text, sizeof text - 1) < 0) __builtin_trap();
}
