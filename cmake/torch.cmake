# Finds torch: that of ${torch_prefix}, from Python, or else a libtorch. Decides whether the CUDA backend is
# built (MLCALIB_USE_CUDA).
set(MLCALIB_USE_CUDA OFF)
set(cuda_lacks "")

if(NOT DEFINED torch_prefix)
  find_package(Torch REQUIRED)
  set(MLCALIB_TORCH_VERSION ${Torch_VERSION})
  set(cuda_lacks "the CUDA backend is built with the torch of a Python: set Python_EXECUTABLE")
elseif(NOT EXISTS ${torch_prefix}/../../lib/libc10_cuda.so)
  find_package(Torch REQUIRED)
  set(cuda_lacks "torch ${MLCALIB_TORCH_VERSION} was built without CUDA")
else()
  # The config of a CUDA torch demands nvcc, cuBLAS, cuDNN and more, of those too who build for the CPU.
  get_filename_component(TORCH_INSTALL_PREFIX ${torch_prefix}/../.. ABSOLUTE)
  string(REGEX REPLACE "\\+.*" "" Torch_VERSION ${MLCALIB_TORCH_VERSION})
  add_library(torch INTERFACE IMPORTED)
  target_include_directories(torch INTERFACE
    ${TORCH_INSTALL_PREFIX}/include ${TORCH_INSTALL_PREFIX}/include/torch/csrc/api/include)
  foreach(library torch torch_cpu c10 c10_cuda)
    target_link_libraries(torch INTERFACE ${TORCH_INSTALL_PREFIX}/lib/lib${library}.so)
  endforeach()
  set(TORCH_LIBRARIES torch)

  if(NOT MLCALIB_CUDA STREQUAL "OFF")
    include(CheckLanguage)
    check_language(CUDA)
    if(NOT CMAKE_CUDA_COMPILER)
      set(cuda_lacks "nvcc was not found (set CUDACXX, or CMAKE_CUDA_COMPILER)")
    endif()
  endif()
endif()

if(MLCALIB_CUDA STREQUAL "ON" AND cuda_lacks)
  message(FATAL_ERROR "MLCALIB_CUDA=ON, but ${cuda_lacks}. It needs a torch with CUDA, and nvcc of the "
                      "same major version; or set MLCALIB_CUDA=OFF.")
elseif(NOT MLCALIB_CUDA STREQUAL "OFF" AND NOT cuda_lacks)
  # Those that a torch wheel serves, and PTX for what comes after.
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 100)
  endif()
  enable_language(CUDA)
  find_package(CUDAToolkit REQUIRED)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c "import torch; print(torch.version.cuda)"
    OUTPUT_VARIABLE torch_cuda OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  if(NOT torch_cuda MATCHES "^${CUDAToolkit_VERSION_MAJOR}\\.")
    message(FATAL_ERROR "torch was built with CUDA ${torch_cuda}, but nvcc is of CUDA ${CUDAToolkit_VERSION}; "
                        "set CUDACXX to an nvcc of the same major version, or MLCALIB_CUDA=OFF.")
  endif()
  set(MLCALIB_USE_CUDA ON)
endif()

if(MLCALIB_USE_CUDA)
  message(STATUS "mlcalib: CUDA ${CUDAToolkit_VERSION} for ${CMAKE_CUDA_ARCHITECTURES}")
else()
  message(STATUS "mlcalib: no CUDA backend (MLCALIB_CUDA=${MLCALIB_CUDA}) ${cuda_lacks}")
endif()
