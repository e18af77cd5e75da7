// Imports what is not served.
__attribute__((import_module("wasi_snapshot_preview1"), import_name("sock_open"))) int sock_open(
    int family, int type, int *fd);

int main(void) {
  int fd = -1;
  return sock_open(1, 1, &fd);
}
