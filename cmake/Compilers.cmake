# The compilers, asked for one by one: CMake's own error does not say which package brings them.

include(CheckLanguage)
foreach(language IN ITEMS C CXX)
  check_language(${language})
  if(NOT CMAKE_${language}_COMPILER)
    message(FATAL_ERROR "No ${language} compiler was found. llama.cpp is compiled while installing. \
Debian and Ubuntu: apt-get install g++; Fedora: dnf install gcc-c++; macOS: xcode-select --install; \
Windows: the Visual Studio Build Tools with the C++ workload. \
A compiler in another place: set the environment variables CC and CXX.")
  endif()
endforeach()
enable_language(C)
enable_language(CXX)

# llama.cpp's modules hand C++ objects to one another. Where each holds a C++ run-time of its own,
# and another package (numpy) has brought the shared one into the process, importing them crashes.
if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
  set(probe "${CMAKE_CURRENT_BINARY_DIR}/cxx-runtime")
  file(WRITE "${probe}.cpp" "#include <iostream>\nint main() { std::cout << 1; }\n")
  try_compile(linked SOURCES "${probe}.cpp" COPY_FILE "${probe}")
  if(linked)
    file(STRINGS "${probe}" runtime REGEX "lib(std)?c\\+\\+\\.so")
    if(NOT runtime)
      message(FATAL_ERROR "${CMAKE_CXX_COMPILER} links its C++ run-time into every module, \
which crashes beside other packages' copy of it. Use a compiler that links the shared one: set \
the environment variables CC and CXX, such as CC=/usr/bin/gcc CXX=/usr/bin/g++, and drop \
-static-libstdc++ from the flags.")
    endif()
  endif()
endif()
