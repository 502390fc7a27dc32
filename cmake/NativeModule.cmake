# The extension module: cffi's generated C, the guard shim (C++), and what the wheel holds.

set(native "${CMAKE_CURRENT_SOURCE_DIR}/src/pyllama/_native")
set(generated "${CMAKE_CURRENT_BINARY_DIR}/generated")
set(objects vocab device model batch context memory sampler chat)

# cffi reads the declarations that follow: types and plain getters of llama.h (.cdef), and the
# prototypes of the guarded calls (.h), which the C++ compiler reads too.
set(declarations "${native}/guard.cdef" "${native}/guard.h")
set(shim_sources "${native}/guard.cpp")
foreach(object IN LISTS objects)
  list(APPEND declarations "${native}/${object}.cdef")
  if(EXISTS "${native}/${object}.h")
    list(APPEND declarations "${native}/${object}.h")
    list(APPEND shim_sources "${native}/${object}.cpp")
  endif()
endforeach()
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${declarations})

set(cdef "")
foreach(declaration IN LISTS declarations)
  file(READ "${declaration}" text)
  string(APPEND cdef "${text}\n")
endforeach()
file(CONFIGURE OUTPUT "${generated}/pyllama.cdef" CONTENT "@cdef@" @ONLY)

add_custom_command(
  OUTPUT "${generated}/_binding.c"
  COMMAND "${Python_EXECUTABLE}" -m cffi.gen_src read-sources pyllama._native._binding
          "${generated}/pyllama.cdef" "${native}/prelude.h" "${generated}/_binding.c"
  DEPENDS "${generated}/pyllama.cdef" "${native}/prelude.h"
  COMMENT "Generating the cffi binding"
  VERBATIM
)

python_add_library(_binding MODULE ${stable_abi} WITH_SOABI
  "${generated}/_binding.c" ${shim_sources})
target_include_directories(_binding PRIVATE "${native}" "${PYLLAMA_LLAMA_CPP_DIR}")
target_link_libraries(_binding PRIVATE llama llama-common)
target_compile_definitions(_binding PRIVATE
  PYLLAMA_LLAMA_CPP_COMMIT="${PYLLAMA_LLAMA_CPP_COMMIT}")

# The wheel: the extension in pyllama/_native, llama.cpp's libraries and backend modules in
# pyllama/_native/lib, each found relative to the file that needs it.
if(APPLE)
  set(origin "@loader_path")
else()
  set(origin "$ORIGIN")
endif()
get_property(backends CACHE GGML_AVAILABLE_BACKENDS PROPERTY VALUE)
set(libraries llama llama-common ggml ggml-base ${backends})
foreach(library IN LISTS libraries)
  # A wheel holds no symbolic links: one plain name for each library, no version suffixes.
  set_property(TARGET ${library} PROPERTY VERSION)
  set_property(TARGET ${library} PROPERTY SOVERSION)
  set_property(TARGET ${library} PROPERTY PUBLIC_HEADER)
  set_target_properties(${library} PROPERTIES INSTALL_RPATH "${origin}")
endforeach()
set_target_properties(_binding PROPERTIES INSTALL_RPATH "${origin}/lib")

install(TARGETS _binding LIBRARY DESTINATION pyllama/_native COMPONENT pyllama)
install(TARGETS ${libraries}
  LIBRARY DESTINATION pyllama/_native/lib COMPONENT pyllama NAMELINK_SKIP
  RUNTIME DESTINATION pyllama/_native/lib COMPONENT pyllama)

add_custom_target(pyllama ALL DEPENDS _binding ${libraries})

# llama.cpp's licence and those of the code it carries travel with its libraries.
file(GLOB carried_licenses "${PYLLAMA_LLAMA_CPP_DIR}/licenses/*")
install(FILES "${PYLLAMA_LLAMA_CPP_DIR}/LICENSE" ${carried_licenses}
  DESTINATION "${SKBUILD_METADATA_DIR}/licenses/llama.cpp" COMPONENT pyllama)
