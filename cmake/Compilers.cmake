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
