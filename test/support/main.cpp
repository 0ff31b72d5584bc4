// test/support/main.cpp -- the main that all test programs share.
#define CATCH_CONFIG_MAIN
#include <catch2/catch.hpp>
