# Headers of cuDNN and of its C++ front end, as longhaul_cudnn. Included where LONGHAUL_HAS_CUDA. Nothing is linked: the
# library is loaded when it is first used (kernels/cuda/lazy_libraries.h).

find_path(CUDNN_INCLUDE_DIR cudnn.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
if(NOT CUDNN_INCLUDE_DIR)
  message(FATAL_ERROR "CUDA is on, but cudnn.h was not found: install cuDNN 9 for CUDA 13 (or set CUDNN_INCLUDE_DIR), "
                      "or pass -DLONGHAUL_CUDA=OFF")
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
target_link_libraries(longhaul_cudnn INTERFACE ${CMAKE_DL_LIBS})
