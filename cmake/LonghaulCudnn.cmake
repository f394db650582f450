# cuDNN and the headers of its C++ front end, as longhaul_cudnn. Included where LONGHAUL_HAS_CUDA.

find_path(CUDNN_INCLUDE_DIR cudnn.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
find_library(CUDNN_LIBRARY NAMES cudnn libcudnn.so.9 HINTS ${CUDAToolkit_LIBRARY_DIR})
if(NOT CUDNN_INCLUDE_DIR OR NOT CUDNN_LIBRARY)
  message(FATAL_ERROR "CUDA is on, but cudnn.h or libcudnn was not found: install cuDNN 9 for CUDA 13 "
                      "(or set CUDNN_INCLUDE_DIR and CUDNN_LIBRARY), or pass -DLONGHAUL_CUDA=OFF")
endif()

set(LONGHAUL_CUDNN_FRONTEND_DIR ${CMAKE_BINARY_DIR}/cudnn_frontend CACHE PATH
    "Folder whose include/ holds cudnn_frontend.h; the default is fetched")
if(LONGHAUL_CUDNN_FRONTEND_DIR STREQUAL ${CMAKE_BINARY_DIR}/cudnn_frontend)
  execute_process(COMMAND bash ${CMAKE_SOURCE_DIR}/deploy/fetch_cudnn_frontend.sh ${LONGHAUL_CUDNN_FRONTEND_DIR}
                  COMMAND_ERROR_IS_FATAL ANY)
endif()

add_library(longhaul_cudnn INTERFACE)
target_include_directories(longhaul_cudnn SYSTEM INTERFACE
  ${LONGHAUL_CUDNN_FRONTEND_DIR}/include ${CUDNN_INCLUDE_DIR})
# nvrtc: the front end refers to it; cuDNN itself loads it for the kernels that it compiles.
target_link_libraries(longhaul_cudnn INTERFACE ${CUDNN_LIBRARY} CUDA::nvrtc)
