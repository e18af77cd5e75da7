// A small module that waits.
#include <unistd.h>

int main(void) {
  return (int)sleep(3600);
}
