// How Python stops a computation: cancel() of another thread, and Ctrl-C.
#pragma once

namespace pyllama {

// Have this function ask Python for signals; NULL for none. It returns whether to stop.
void poll_signals_by(bool (*poll)(void)) noexcept;

} // namespace pyllama
