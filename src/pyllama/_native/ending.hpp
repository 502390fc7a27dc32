// The end of the interpreter: guarded calls are refused, computations stop, and what is left waits.
#pragma once

namespace pyllama {

// Counts this thread as inside a guarded call; whether it may go on. False once the interpreter is
// ending.
bool enter_guard() noexcept;
void leave_guard() noexcept;

// Whether the interpreter is ending: what runs long should stop.
bool ending() noexcept;

[[noreturn]] void park() noexcept;

} // namespace pyllama
