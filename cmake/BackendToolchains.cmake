# For each GPU backend: whether its toolchain is here, and which packages bring it.

set(PYLLAMA_GPU_BACKENDS CUDA VULKAN METAL OPENCL BLAS HIP SYCL)

# Sets ${missing} to a sentence that names what is missing and how to get it, or to "".
function(pyllama_probe_toolchain backend missing)
  set(${missing} "" PARENT_SCOPE)
  if(backend STREQUAL "CUDA")
    include(CheckLanguage)
    check_language(CUDA)
    if(NOT CMAKE_CUDA_COMPILER)
      set(${missing} "No CUDA compiler (nvcc) was found. Install NVIDIA's CUDA toolkit \
(Debian and Ubuntu: nvidia-cuda-toolkit, or NVIDIA's own cuda-toolkit packages) and put its bin \
folder on PATH, or give its path: -C cmake.define.CMAKE_CUDA_COMPILER=/path/to/nvcc" PARENT_SCOPE)
    endif()
  elseif(backend STREQUAL "VULKAN")
    pyllama_probe_vulkan(sentence)
    set(${missing} "${sentence}" PARENT_SCOPE)
  elseif(backend STREQUAL "METAL")
    if(NOT APPLE)
      set(${missing} "Metal exists on Apple's systems only." PARENT_SCOPE)
    endif()
  elseif(backend STREQUAL "OPENCL")
    find_package(OpenCL QUIET)
    if(NOT OpenCL_FOUND)
      set(${missing} "No OpenCL headers or loader were found. Debian and Ubuntu: \
apt-get install opencl-headers ocl-icd-opencl-dev; Fedora: opencl-headers ocl-icd-devel." PARENT_SCOPE)
    endif()
  elseif(backend STREQUAL "BLAS")
    find_package(BLAS QUIET)
    if(NOT BLAS_FOUND)
      set(${missing} "No BLAS library was found. Debian and Ubuntu: apt-get install \
libopenblas-dev pkg-config, with -C cmake.define.GGML_BLAS_VENDOR=OpenBLAS; Fedora: openblas-devel." PARENT_SCOPE)
    endif()
  elseif(backend STREQUAL "HIP")
    find_program(hipcc_program hipcc HINTS /opt/rocm/bin)
    if(NOT hipcc_program)
      set(${missing} "No HIP compiler (hipcc) was found. Install AMD's ROCm (Debian and Ubuntu: \
hipcc libhipblas-dev librocblas-dev) and put its bin folder on PATH." PARENT_SCOPE)
    endif()
  elseif(backend STREQUAL "SYCL")
    find_program(icpx_program icpx)
    if(NOT icpx_program)
      set(${missing} "No SYCL compiler (icpx) was found. Install Intel's oneAPI base toolkit, \
run its setvars.sh, and build with CC=icx CXX=icpx." PARENT_SCOPE)
    endif()
  endif()
endfunction()

# A demand that cannot be met is an error.
function(pyllama_require_toolchain backend)
  pyllama_probe_toolchain(${backend} sentence)
  if(sentence)
    message(FATAL_ERROR "GGML_${backend}=ON was asked for, but it cannot be built here. ${sentence}\n"
      "Or leave GGML_${backend} out.")
  endif()
endfunction()

# Vulkan needs headers that are new enough, SPIR-V headers and a shader compiler. The headers
# are judged by compiling what llama.cpp uses of them: versions mislead (Debian 12's 1.3.239
# configures, and then does not compile).
function(pyllama_probe_vulkan missing)
  set(how "Debian 13, Ubuntu 24.10 and newer: apt-get install libvulkan-dev spirv-headers glslc; \
Fedora: vulkan-headers vulkan-loader-devel spirv-headers-devel glslc; elsewhere the Vulkan SDK. \
Headers in another folder: -C cmake.define.Vulkan_INCLUDE_DIR=… -C cmake.define.SPIRV-Headers_DIR=…")
  set(lacking "")
  find_package(Vulkan QUIET COMPONENTS glslc)
  find_package(SPIRV-Headers QUIET)
  if(NOT Vulkan_INCLUDE_DIR OR NOT Vulkan_LIBRARY)
    list(APPEND lacking "Vulkan headers and loader")
  endif()
  if(NOT Vulkan_glslc_FOUND)
    list(APPEND lacking "the shader compiler glslc")
  endif()
  if(NOT SPIRV-Headers_FOUND)
    list(APPEND lacking "SPIR-V headers")
  endif()
  if(NOT lacking)
    try_compile(vulkan_headers_compile
      SOURCE_FROM_CONTENT vulkan_probe.cpp
        "#include <vulkan/vulkan.hpp>\n#include <spirv/unified1/spirv.hpp>\nint main() { vk::LayerSettingEXT setting; (void) setting; return 0; }\n"
      CMAKE_FLAGS "-DINCLUDE_DIRECTORIES=${Vulkan_INCLUDE_DIR}"
      LINK_LIBRARIES SPIRV-Headers::SPIRV-Headers
      CXX_STANDARD 17)
    if(NOT vulkan_headers_compile)
      list(APPEND lacking "Vulkan headers new enough for llama.cpp (those in ${Vulkan_INCLUDE_DIR} are not)")
    endif()
  endif()
  if(lacking)
    list(JOIN lacking ", " lacking)
    set(${missing} "Missing: ${lacking}. ${how}" PARENT_SCOPE)
  else()
    set(${missing} "" PARENT_SCOPE)
  endif()
endfunction()
