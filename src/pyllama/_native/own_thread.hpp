// Threads with a stack of a given size; std::thread takes what the system has for a default, which
// is 8 MiB on most Linux systems, 512 KiB on macOS, 128 KiB with musl.
#pragma once

#include <cstddef>
#include <functional>

namespace pyllama {

// Runs the work on a thread of its own, which nobody waits for. The work must not throw.
// Throws pyllama::refused where no thread can be had.
void start_thread(size_t stack_size, std::function<void()> work);

} // namespace pyllama
