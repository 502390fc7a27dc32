// The guard shim: nothing thrown or asserted inside llama.cpp may reach Python's C frames.
//
// Every call into llama.cpp that can throw or assert goes through guarded(). It catches, keeps
// what it caught for this thread (pyllama_caught, pyllama_caught_message), and returns the
// value that the caller takes for failure. Once the interpreter is ending it refuses every call.
//
// An exception that stands for a failed assertion runs destructors of objects that llama.cpp was in
// the middle of changing. So what makes and frees large objects goes through guarded_apart() (see
// apart.hpp), and an object in which an assertion failed is neither used nor freed any more.
#pragma once

#include "prelude.h"

#include <exception>
#include <functional>
#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

namespace pyllama {

// What ggml's abort callback throws in place of ending the process.
struct assertion_failure : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Thrown before anything was changed, for want of memory or threads.
struct refused : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Marks this thread as inside a guarded call, where an abort may become an exception.
class guard_scope {
  public:
    guard_scope() noexcept;
    ~guard_scope() noexcept;
    guard_scope(const guard_scope &) = delete;
    guard_scope & operator=(const guard_scope &) = delete;

    // Whether the call may go on: false when the interpreter is ending, and where there is no memory
    // for what a thread keeps.
    bool admitted() const noexcept { return admitted_; }

    // The call failed. What it logged as errors becomes part of an exception.
    void fail() noexcept { failed_ = true; }

  private:
    bool settled_;
    bool outermost_;
    bool admitted_;
    bool failed_ = false;
    size_t n_held_ = 0; // lines of the log that waited when it began
};

void keep_caught(pyllama_caught_kind kind, const char * message) noexcept;

// What a call that was not admitted is to report.
void keep_refusal() noexcept;

// Whether an assertion failed in this guarded call, and llama.cpp caught its exception. Asking
// forgets it.
bool take_swallowed_assertion() noexcept;

// What keeps a caught exception apart: what the guarded call is to report. Call it in a handler.
void keep_current_exception() noexcept;

// Whether what a function of llama.cpp returned says that it failed.
template <class T> bool is_failure(T result) noexcept {
    if constexpr (std::is_integral_v<T> && std::is_signed_v<T>) {
        return result < 0;
    } else {
        return !result; // a null pointer, false, a size of 0
    }
}

template <class T, class Call> T guarded(T failed, Call && call) noexcept {
    guard_scope scope;
    if (!scope.admitted()) {
        keep_refusal();
        return failed;
    }
    try {
        T result = std::forward<Call>(call)();
        if (!take_swallowed_assertion()) {
            if (is_failure(result)) {
                scope.fail();
            }
            return result;
        }
    } catch (...) {
        keep_current_exception();
    }
    scope.fail();
    return failed;
}

// For calls that return nothing: 0, or PYLLAMA_CAUGHT.
template <class Call> int32_t guarded(Call && call) noexcept {
    return guarded(PYLLAMA_CAUGHT, [&]() -> int32_t {
        std::forward<Call>(call)();
        return 0;
    });
}

// Calls into Python. A thread that Python ends in there, because the interpreter is ending, stays
// where it is for ever: unwinding it would run through llama.cpp.
void call_python(const std::function<void()> & call);

// A copy on the heap, for Python to read and then give to pyllama_free().
char * copy_string(const std::string & text);

} // namespace pyllama
