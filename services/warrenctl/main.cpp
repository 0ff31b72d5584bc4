// services/warrenctl/main.cpp -- the process around the command line.
#include <iostream>

#include <unistd.h>

#include "services/warrenctl/command.hpp"

int main(int argc, char** argv) {
  warren::ctl::surroundings around{std::cout, std::cerr, isatty(STDOUT_FILENO) != 0};
  return warren::ctl::run({argv + 1, argv + argc}, around);
}
