// The guard shim: nothing thrown or asserted inside llama.cpp may reach Python's C frames.
//
// Every call into llama.cpp that can throw or assert goes through guarded(). It catches, keeps
// what it caught for this thread (pyllama_caught, pyllama_caught_message), and returns the
// value that the caller takes for failure.
#pragma once

#include "prelude.h"

#include <exception>
#include <functional>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

namespace pyllama {

// What ggml's abort callback throws in place of ending the process.
struct assertion_failure : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Marks this thread as inside a guarded call, where an abort may become an exception.
class guard_scope {
  public:
    guard_scope() noexcept;
    ~guard_scope() noexcept;
    guard_scope(const guard_scope &) = delete;
    guard_scope & operator=(const guard_scope &) = delete;
};

void keep_caught(pyllama_caught_kind kind, const char * message) noexcept;

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

// Have the log come to us again, after a function that set a log callback of its own.
void restore_log() noexcept;

template <class T, class Call> T guarded(T failed, Call && call) noexcept {
    guard_scope scope;
    try {
        return std::forward<Call>(call)();
    } catch (const assertion_failure & failure) {
        keep_caught(PYLLAMA_CAUGHT_ASSERTION, failure.what());
    } catch (const std::bad_alloc &) {
        keep_caught(PYLLAMA_CAUGHT_OUT_OF_MEMORY, "out of memory");
    } catch (const std::exception & exception) {
        keep_caught(PYLLAMA_CAUGHT_EXCEPTION, exception.what());
    } catch (...) {
        keep_caught(PYLLAMA_CAUGHT_EXCEPTION, "an exception of unknown type");
    }
    return failed;
}

// For calls that return nothing: 0, or PYLLAMA_CAUGHT.
template <class Call> int32_t guarded(Call && call) noexcept {
    return guarded(PYLLAMA_CAUGHT, [&]() -> int32_t {
        std::forward<Call>(call)();
        return 0;
    });
}

// A copy on the heap, for Python to read and then give to pyllama_free().
char * copy_string(const std::string & text);

} // namespace pyllama
