// The memory of a thread's own variables.
//
// glibc takes it when a thread first uses a variable of a library that was loaded with dlopen(), as
// Python loads all of its modules, and ends the process (status 127) where there is none.
#pragma once

namespace pyllama {

// Has this thread take that memory now, unless it has it already. Returns false, and uses none of the
// variables, where memory is short.
bool settle_thread() noexcept;

// Whether it has. Never takes memory.
bool is_settled() noexcept;

} // namespace pyllama
