// Threads that help with many small pieces of work, and sleep between.
#pragma once

#include <cstdint>
#include <functional>

namespace pyllama {

// Calls work(0) to work(n - 1), each once, on this thread and up to n_threads - 1 others, and
// returns when all have returned. They must not throw. Fewer threads help where none can be made.
void run_each(int32_t n, int32_t n_threads, const std::function<void(int32_t)> & work);

} // namespace pyllama
