// What the guard keeps for each thread of Python's that calls into C.
#pragma once

#include "guard.hpp"

#include <string>
#include <utility>
#include <vector>

namespace pyllama {

class log_listener;

struct thread_state {
    thread_state() noexcept;

    int                 depth = 0; // of guarded calls
    pyllama_caught_kind kind  = PYLLAMA_CAUGHT_NOTHING;
    std::string         message;
    std::string         errors; // what llama.cpp logged as errors during the guarded call
    std::string         line;   // of the log, until its line break
    ggml_log_level      level    = GGML_LOG_LEVEL_NONE;
    log_listener *      listener = nullptr;
    bool                holds_log = false; // until it is known how a computation ends
    bool                is_trial  = false; // what is logged below an error is for debugging
    // Lines that wait: from the first error on until it is known how the call ends.
    std::vector<std::pair<ggml_log_level, std::string>> held;
    bool                asserted = false; // an assertion failed that nobody has been told of
    std::string         assertion;
};

// Of this thread, or of the one that it works for.
thread_state & this_thread() noexcept;

// While it lives, this thread works for another one, which waits.
class works_for {
  public:
    explicit works_for(thread_state & home) noexcept;
    ~works_for() noexcept;
    works_for(const works_for &) = delete;
    works_for & operator=(const works_for &) = delete;
};

} // namespace pyllama
