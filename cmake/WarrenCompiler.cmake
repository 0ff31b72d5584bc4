# How our own code is compiled. Generated code and libraries are SYSTEM: their warnings are not ours.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_CXX_FLAGS_DEBUG "-g1 -O0")  # -g1: backtraces, at a third of the link time of full debug information
set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O2 -g1 -DNDEBUG")

option(WARREN_FAILPOINTS "Compile the named failpoints that tests use to kill or fail a step" OFF)
option(WARREN_SANITIZE "Address and undefined-behaviour sanitizers" OFF)
option(WARREN_TIDY "Run clang-tidy with each compilation" OFF)

find_program(CCACHE ccache)
if(CCACHE)
  # A checkout elsewhere must hit the same cache: paths are relative, precompiled headers are hashed by content.
  set(CMAKE_CXX_COMPILER_LAUNCHER env CCACHE_BASEDIR=${CMAKE_SOURCE_DIR} CCACHE_NOHASHDIR=1
      CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime ${CCACHE})
endif()

if(WARREN_TIDY)
  find_program(CLANG_TIDY NAMES clang-tidy-14 clang-tidy REQUIRED)
endif()

add_library(warren_options INTERFACE)
target_include_directories(warren_options INTERFACE ${CMAKE_SOURCE_DIR})
target_compile_options(warren_options INTERFACE
  -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Wnon-virtual-dtor -Werror
  -Wno-missing-field-initializers   # designated initialisers leave the rest to its default, on purpose
  -Wno-maybe-uninitialized         # optimised, GCC 12 reports it inside the standard library's own containers; asan finds real ones
  -fpch-preprocess)
if(WARREN_FAILPOINTS)
  target_compile_definitions(warren_options INTERFACE WARREN_FAILPOINTS=1)
endif()
if(WARREN_SANITIZE)
  # CAF binds a null reference in init_fun_factory.hpp; GCC 12 reports false maybe-uninitialized under ASan.
  add_compile_options(-fsanitize=address,undefined -fno-sanitize=null -Wno-maybe-uninitialized -Og)
  add_link_options(-fsanitize=address,undefined)
endif()

# warren_library(name SOURCES ... LINK ... [PCH header])
function(warren_library name)
  cmake_parse_arguments(arg "" "PCH" "SOURCES;LINK" ${ARGN})
  add_library(${name} STATIC ${arg_SOURCES})
  target_link_libraries(${name} PUBLIC ${arg_LINK} PRIVATE warren_options)
  target_include_directories(${name} PUBLIC ${CMAKE_SOURCE_DIR})
  if(arg_PCH)
    target_precompile_headers(${name} PRIVATE ${arg_PCH})
  endif()
  if(WARREN_TIDY)
    set_target_properties(${name} PROPERTIES CXX_CLANG_TIDY ${CLANG_TIDY})
  endif()
endfunction()

# warren_program(name SOURCES ... LINK ...): lands in build/<preset>/bin
function(warren_program name)
  cmake_parse_arguments(arg "" "" "SOURCES;LINK" ${ARGN})
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE ${arg_LINK} warren_options)
  target_include_directories(${name} PRIVATE ${CMAKE_SOURCE_DIR})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
endfunction()
