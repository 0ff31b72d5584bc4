// services/warrenctl/main.cpp -- the process around the command line.
#include <exception>
#include <iostream>

#include <sys/stat.h>
#include <unistd.h>

#include "services/warrenctl/command.hpp"

namespace {

bool others_may_read(int fd) {
  struct stat about {};
  return ::fstat(fd, &about) == 0 && S_ISREG(about.st_mode) && (about.st_mode & 077) != 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    warren::ctl::surroundings around{std::cout, std::cerr, isatty(STDOUT_FILENO) != 0, others_may_read(STDOUT_FILENO)};
    return warren::ctl::run({argv + 1, argv + argc}, around);
  } catch (const std::exception& e) {
    std::cerr << "warrenctl: INTERNAL: " << e.what() << '\n';
    return warren::ctl::failed;
  }
}
