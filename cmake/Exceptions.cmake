# An assertion of ggml's becomes a C++ exception, which passes through frames of ggml's C files on its
# way to the guard. C files are compiled for that here: the standard leaves it to the compiler.
#
# GCC and Clang write unwind tables for C with -fexceptions only, but on platforms whose ABI wants them
# always. Windows on x64 and ARM64 always has them; there /EHsc lets the compiler take it that
# functions of C never throw, and leave out destructors around calls of them: /EHs does not.
if(MSVC)
  string(REPLACE "/EHsc" "/EHs" CMAKE_CXX_FLAGS "${CMAKE_CXX_FLAGS}")
  if(NOT CMAKE_CXX_FLAGS MATCHES "/EHs")
    string(APPEND CMAKE_CXX_FLAGS " /EHs")
  endif()
else()
  string(APPEND CMAKE_C_FLAGS " -fexceptions")
endif()
