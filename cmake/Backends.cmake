# Defaults for llama.cpp's options. Whatever the user defined stays as it is.

macro(pyllama_default option value)
  if(NOT DEFINED ${option})
    set(${option} ${value})
  endif()
endmacro()

# Backends are modules loaded at run time, so that one wheel runs on any processor and imports
# where no GPU driver is. GGML_NATIVE=ON asks for the opposite: one build, for this machine.
if(GGML_NATIVE)
  pyllama_default(GGML_BACKEND_DL OFF)
else()
  pyllama_default(GGML_NATIVE OFF)
  pyllama_default(GGML_BACKEND_DL ON)
endif()
pyllama_default(GGML_CPU_ALL_VARIANTS ${GGML_BACKEND_DL})
set(BUILD_SHARED_LIBS ON)

# libllama-common is used for chat templates, grammars and memory fit; its downloader is not.
set(LLAMA_BUILD_COMMON ON)
pyllama_default(LLAMA_OPENSSL OFF)
pyllama_default(LLAMA_SUBPROCESS OFF)
pyllama_default(LLAMA_BUILD_IS_DEV OFF)
string(SUBSTRING "${PYLLAMA_LLAMA_CPP_COMMIT}" 0 10 LLAMA_BUILD_COMMIT)
set(LLAMA_BUILD_NUMBER 0)

# A backend asked for by name must be buildable: say what is missing before llama.cpp's own
# CMake stops with a message about a file.
include(BackendToolchains)
foreach(backend IN LISTS PYLLAMA_GPU_BACKENDS)
  if(GGML_${backend})
    pyllama_require_toolchain(${backend})
  endif()
endforeach()

# Vulkan is built by default wherever it can be; where it cannot, the summary says why.
if(NOT DEFINED GGML_VULKAN)
  pyllama_probe_toolchain(VULKAN PYLLAMA_MISSING_VULKAN)
  if(PYLLAMA_MISSING_VULKAN)
    set(GGML_VULKAN OFF)
  else()
    set(GGML_VULKAN ON)
  endif()
endif()

# The GPUs of this machine, or else llama.cpp's list (docs/backends.md): GGML_NATIVE=OFF, which
# modules for every processor need, would have it compile the whole list here too.
if(GGML_CUDA AND NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  find_program(nvidia_smi nvidia-smi)
  if(nvidia_smi)
    execute_process(COMMAND "${nvidia_smi}" -L OUTPUT_VARIABLE gpus ERROR_QUIET)
    if(gpus MATCHES "GPU 0")
      set(CMAKE_CUDA_ARCHITECTURES native)
    endif()
  endif()
endif()
