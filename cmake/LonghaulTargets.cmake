# longhaul_library / longhaul_binary / longhaul_test: the three kinds of target, with our warnings and sanitizer on each.

find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_C_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
endif()

if(LONGHAUL_SANITIZE)
  add_compile_options(-fsanitize=${LONGHAUL_SANITIZE} -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${LONGHAUL_SANITIZE})
endif()

function(longhaul_options target)
  set(warnings -Wall -Wextra -Wshadow -Wnon-virtual-dtor -Werror)
  # -Wpedantic objects to the line markers in what nvcc hands to the host compiler.
  list(JOIN warnings "," host_warnings)
  target_compile_options(${target} PRIVATE
    "$<$<COMPILE_LANGUAGE:CXX>:${warnings};-Wpedantic>"
    "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=${host_warnings};-Werror=all-warnings;--expt-relaxed-constexpr>")
  target_include_directories(${target} PUBLIC ${CMAKE_SOURCE_DIR})
endfunction()

function(longhaul_library target)
  cmake_parse_arguments(arg "" "" "SOURCES;DEPS" ${ARGN})
  add_library(${target} STATIC ${arg_SOURCES})
  longhaul_options(${target})
  target_link_libraries(${target} PUBLIC ${arg_DEPS})
endfunction()

# OUTPUT_NAME: the file's name where it differs from the target's (longhaul-worker from longhaul_worker_main).
function(longhaul_binary target)
  cmake_parse_arguments(arg "" "OUTPUT_NAME" "SOURCES;DEPS" ${ARGN})
  add_executable(${target} ${arg_SOURCES})
  longhaul_options(${target})
  target_link_libraries(${target} PRIVATE ${arg_DEPS})
  if(arg_OUTPUT_NAME)
    set_target_properties(${target} PROPERTIES OUTPUT_NAME ${arg_OUTPUT_NAME})
  endif()
endfunction()

# One executable and one ctest entry a call. LABELS: "parser" and "core" choose what the sanitizer runs take.
function(longhaul_test target)
  cmake_parse_arguments(arg "" "TIMEOUT" "SOURCES;DEPS;LABELS" ${ARGN})
  add_executable(${target} ${arg_SOURCES})
  longhaul_options(${target})
  target_link_libraries(${target} PRIVATE ${arg_DEPS} GTest::gmock GTest::gtest_main)
  target_compile_definitions(${target} PRIVATE LONGHAUL_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
  add_test(NAME ${target} COMMAND ${target})
  if(arg_LABELS)
    set_tests_properties(${target} PROPERTIES LABELS "${arg_LABELS}")
  endif()
  if(arg_TIMEOUT)
    set_tests_properties(${target} PROPERTIES TIMEOUT ${arg_TIMEOUT})
  endif()
endfunction()
