// llama.cpp's log on its way to Python: pieces become lines, and a call's errors what it raises.
#pragma once

#include "guard.hpp"

#include <string>

namespace pyllama {

struct thread_state;

// Have the log of all threads come to this function; NULL for nobody.
void hand_log_to(void (*handler)(int32_t level, const char * line)) noexcept;

// The outermost guarded call of a thread begins.
void begin_log(thread_state & state) noexcept;

// A guarded call failed, whose lines are those from the first one on that wait.
void log_failed(thread_state & state, size_t first) noexcept;

// The outermost guarded call ends: hand on the lines that waited for it.
void end_log(thread_state & state) noexcept;

// While it lives, it hears every line that this thread writes to the log, whatever its level, and
// nobody else does if it is exclusive. It may throw: the exception then leaves the function of
// llama.cpp that wrote the line.
class log_listener {
  public:
    using callback = std::function<void(const std::string & line)>;
    log_listener(bool exclusive, callback on_line) noexcept;
    ~log_listener() noexcept;
    log_listener(const log_listener &) = delete;
    log_listener & operator=(const log_listener &) = delete;
    void hear(const std::string & line);
    const bool exclusive;

  private:
    callback on_line;
    log_listener * previous;
};

// A computation: what it returns is 0, or says what failed. Its log waits until then. llama.cpp logs
// errors for a computation that was stopped (it returned stopped): those lines are logged for
// debugging only.
int32_t compute(int32_t stopped, const std::function<int32_t()> & call);

// While it lives, what this thread logs below an error is logged for debugging.
class trial {
  public:
    trial() noexcept;
    ~trial() noexcept;
    trial(const trial &) = delete;
    trial & operator=(const trial &) = delete;
};

// Have the log of llama.cpp come to us.
void hear_log() noexcept;

} // namespace pyllama
