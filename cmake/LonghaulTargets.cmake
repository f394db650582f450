# longhaul_library / longhaul_binary / longhaul_test: the three kinds of target, with our warnings and sanitizer on each.

find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_C_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
  # Without these two ccache takes no file that is compiled with a precompiled header.
  set(CMAKE_CXX_COMPILER_LAUNCHER
      ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=pch_defines,time_macros ${CCACHE_PROGRAM})
endif()

# Half a hundred programs are linked, each in a second or, by mold, in a fifth of one.
find_program(MOLD_PROGRAM mold)
if(MOLD_PROGRAM)
  add_link_options(-fuse-ld=mold)
endif()

# Line tables and function names are what a backtrace needs; types and locals cost a quarter of the build.
# A debugging session that wants them configures with -DLONGHAUL_DEBUG_INFO=2.
set(LONGHAUL_DEBUG_INFO 1 CACHE STRING "Level of debug information: 0 to 3")
add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-g${LONGHAUL_DEBUG_INFO}>)
# The same on every target, so that they can share precompiled headers.
add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-pthread>)

if(LONGHAUL_SANITIZE)
  # At -O1, which compiles in half the time. GCC's flow warnings see what the instrumentation adds, so they are left to
  # the build without it.
  add_compile_options(-fsanitize=${LONGHAUL_SANITIZE} -fno-omit-frame-pointer -O1)
  add_link_options(-fsanitize=${LONGHAUL_SANITIZE})
endif()

# Sources of a target are compiled six at a time: most of a source's time goes into headers, and so does a third of the
# build. Names in unnamed namespaces are then unique within a target. `-DLONGHAUL_UNITY=OFF` compiles each by itself, so
# that an edit builds the least; the tsan preset does, so that a missing include shows. A target says SEPARATE where its
# sources are twins of each other (kernels, their tests).
set(LONGHAUL_UNITY ON CACHE BOOL "Compile the sources of a target six at a time")
set(CMAKE_UNITY_BUILD_BATCH_SIZE 6)

function(longhaul_options target)
  set(warnings -Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor -Werror)
  if(LONGHAUL_SANITIZE)
    set(warnings -w)
  endif()
  # GCC 12 at -O3 takes the inlined parts of a string's operator+ for copies past its end (GCC's bugs 105329, 105651).
  # The dev build, at -O2, has these warnings.
  if(CMAKE_BUILD_TYPE STREQUAL "Release" AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    list(APPEND warnings -Wno-restrict -Wno-array-bounds -Wno-stringop-overflow -Wno-stringop-overread)
  endif()
  # -Wpedantic objects to the line markers in what nvcc hands to the host compiler.
  set(host_warnings ${warnings})
  list(REMOVE_ITEM host_warnings -Wpedantic)
  list(JOIN host_warnings "," host_warnings)
  target_compile_options(${target} PRIVATE
    "$<$<COMPILE_LANGUAGE:CXX>:${warnings}>"
    "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=${host_warnings};-Werror=all-warnings;--expt-relaxed-constexpr>")
  target_include_directories(${target} PUBLIC ${CMAKE_SOURCE_DIR})
endfunction()

function(longhaul_unity target)
  if(LONGHAUL_UNITY)
    set_target_properties(${target} PROPERTIES UNITY_BUILD ON)
    # A class whose parts are in an unnamed namespace of its own source looks, from there, as if a header had it.
    target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:-Wno-subobject-linkage>")
  endif()
endfunction()

# Precompiled headers: the standard library with Abseil and JSON is half of a source's compile time, gtest a third of a
# test's. (gRPC's were tried: with them a service compiles no faster than with these, and the command line slower.) The
# tsan preset compiles without, so that a missing include shows.
function(longhaul_precompiled name)
  cmake_parse_arguments(arg "" "" "DEPS;HEADERS" ${ARGN})
  file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/${name}.cc CONTENT "// Compiles the headers of ${name}.\n")
  add_library(${name} STATIC ${CMAKE_BINARY_DIR}/${name}.cc)
  longhaul_options(${name})
  target_link_libraries(${name} PRIVATE ${arg_DEPS})
  target_precompile_headers(${name} PRIVATE ${arg_HEADERS})
endfunction()

# What parses a command line and prints compiles longer than it will ever run: at -O1, where GCC 12 sees overruns in
# std::string that are not there (PR 105329); where our other code is compiled, at -O2, these warnings stay on.
function(longhaul_runs_once target)
  target_compile_options(${target} PRIVATE
    "$<$<COMPILE_LANGUAGE:CXX>:-O1;-Wno-array-bounds;-Wno-restrict;-Wno-stringop-overflow;-Wno-stringop-overread>")
endfunction()

# RUNS_ONCE: as above. OWN_FLAGS: its flags keep it from sharing precompiled headers. SEPARATE: no unity build.
function(longhaul_library target)
  cmake_parse_arguments(arg "RUNS_ONCE;OWN_FLAGS;SEPARATE" "" "SOURCES;DEPS" ${ARGN})
  add_library(${target} STATIC ${arg_SOURCES})
  longhaul_options(${target})
  target_link_libraries(${target} PUBLIC ${arg_DEPS})
  if(arg_RUNS_ONCE)
    longhaul_runs_once(${target})
  elseif(NOT arg_OWN_FLAGS)
    target_precompile_headers(${target} REUSE_FROM longhaul_headers)
  endif()
  if(NOT arg_SEPARATE)
    longhaul_unity(${target})
  endif()
endfunction()

# OUTPUT_NAME: the file's name where it differs from the target's (longhaul-worker from longhaul_worker_main).
function(longhaul_binary target)
  cmake_parse_arguments(arg "SEPARATE" "OUTPUT_NAME" "SOURCES;DEPS" ${ARGN})
  add_executable(${target} ${arg_SOURCES})
  longhaul_options(${target})
  longhaul_runs_once(${target})
  if(NOT arg_SEPARATE)
    longhaul_unity(${target})
  endif()
  target_link_libraries(${target} PRIVATE ${arg_DEPS})
  if(arg_OUTPUT_NAME)
    set_target_properties(${target} PROPERTIES OUTPUT_NAME ${arg_OUTPUT_NAME})
  endif()
endfunction()

# One executable and one ctest entry a call. A test is compiled more often than it is run, and the code that it tests is
# optimised in any case. LABELS: "parser" and "core" choose what the sanitizer runs take.
function(longhaul_test target)
  cmake_parse_arguments(arg "SEPARATE" "TIMEOUT" "SOURCES;DEPS;LABELS" ${ARGN})
  add_executable(${target} ${arg_SOURCES})
  longhaul_options(${target})
  if(NOT arg_SEPARATE)
    longhaul_unity(${target})
  endif()
  target_link_libraries(${target} PRIVATE ${arg_DEPS} GTest::gmock GTest::gtest_main)
  target_compile_definitions(${target} PRIVATE LONGHAUL_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
  target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:-O0>")
  target_precompile_headers(${target} REUSE_FROM longhaul_test_headers)
  add_test(NAME ${target} COMMAND ${target})
  if(arg_LABELS)
    set_tests_properties(${target} PROPERTIES LABELS "${arg_LABELS}")
  endif()
  if(arg_TIMEOUT)
    set_tests_properties(${target} PROPERTIES TIMEOUT ${arg_TIMEOUT})
  endif()
endfunction()
