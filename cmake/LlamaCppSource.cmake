# Where llama.cpp's sources are: a checkout of the user's, or vendor/llama.cpp, which the
# vendor script fills and repairs.

set(PYLLAMA_LLAMA_CPP_DIR "" CACHE PATH "Build against this llama.cpp checkout, not the pinned one")

set(pin_file "${CMAKE_CURRENT_LIST_DIR}/../vendor/llama_cpp_pin.json")
set(vendor_script "${CMAKE_CURRENT_LIST_DIR}/../vendor/fetch_llama_cpp.py")
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${pin_file}" "${vendor_script}")

if(PYLLAMA_LLAMA_CPP_DIR)
  set(PYLLAMA_LLAMA_CPP_COMMIT "unpinned")
else()
  execute_process(
    COMMAND "${Python_EXECUTABLE}" "${vendor_script}"
    RESULT_VARIABLE vendor_result
  )
  if(NOT vendor_result EQUAL 0)
    message(FATAL_ERROR "llama.cpp's sources are not in vendor/llama.cpp; see the error above.")
  endif()
  set(PYLLAMA_LLAMA_CPP_DIR "${CMAKE_CURRENT_LIST_DIR}/../vendor/llama.cpp")
  file(READ "${pin_file}" pin)
  string(JSON PYLLAMA_LLAMA_CPP_COMMIT GET "${pin}" commit)
endif()

if(NOT EXISTS "${PYLLAMA_LLAMA_CPP_DIR}/include/llama.h")
  message(FATAL_ERROR "PYLLAMA_LLAMA_CPP_DIR=${PYLLAMA_LLAMA_CPP_DIR} holds no include/llama.h: "
    "give the path of a llama.cpp checkout, or leave it out to build the pinned one.")
endif()
