# Whether the CUDA backend is built (LONGHAUL_HAS_CUDA), for which devices, and how our device code is compiled.
# Where it is off, kernels/cuda/no_cuda.cc is linked in its place and nothing else changes.

set(LONGHAUL_CUDA AUTO CACHE STRING "CUDA backend: AUTO (where nvcc and its runtime library are found), ON or OFF")
set_property(CACHE LONGHAUL_CUDA PROPERTY STRINGS AUTO ON OFF)
# Machine code for the devices named, and PTX ("virtual") that a driver compiles for later ones.
set(LONGHAUL_CUDA_ARCHITECTURES "90-real;90-virtual" CACHE STRING "CUDA architectures")

set(LONGHAUL_HAS_CUDA OFF)
# The sanitizers of the host compiler do not reach through nvcc.
if(LONGHAUL_SANITIZE AND LONGHAUL_CUDA STREQUAL "AUTO")
  set(LONGHAUL_CUDA OFF)
endif()
if(NOT LONGHAUL_CUDA STREQUAL "OFF")
  set(CMAKE_CUDA_ARCHITECTURES ${LONGHAUL_CUDA_ARCHITECTURES})
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    find_package(CUDAToolkit 12.0)
  endif()
  if(CMAKE_CUDA_COMPILER AND TARGET CUDA::cudart_static)
    set(LONGHAUL_HAS_CUDA ON)
  elseif(LONGHAUL_CUDA STREQUAL "ON")
    message(FATAL_ERROR "LONGHAUL_CUDA is ON, but nvcc and the static CUDA runtime (12.0 or newer) were not found: "
                        "install the CUDA toolkit, or set CUDACXX to its nvcc")
  endif()
endif()

if(LONGHAUL_HAS_CUDA)
  enable_language(CUDA)
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_EXTENSIONS OFF)
  # CMake 3.25 does not know that nvcc has C++20 since CUDA 12.
  if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
  endif()
  if(CCACHE_PROGRAM AND NOT CMAKE_CUDA_COMPILER_LAUNCHER)
    set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
  endif()
  message(STATUS "CUDA backend: ON, nvcc ${CMAKE_CUDA_COMPILER_VERSION}, for ${LONGHAUL_CUDA_ARCHITECTURES}")
else()
  message(STATUS "CUDA backend: OFF")
endif()
