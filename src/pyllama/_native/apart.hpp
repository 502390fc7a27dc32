// Making and freeing large objects of llama.cpp on a thread of its own.
//
// Where an assertion fails or memory ends while a context is being made, its parts are half changed:
// an exception would run their destructors, which free twice what was freed already. A thread that
// such a failure strikes stays where it is, for ever, with everything that it had begun: nothing is
// unwound, nothing freed, and its caller gets the error.
#pragma once

#include "guard.hpp"

namespace pyllama {

// A failure that left a thread where it was, and with it all that had been made.
struct stranded : std::runtime_error {
    stranded(pyllama_caught_kind kind, const std::string & message)
        : std::runtime_error(message), kind(kind) {}
    pyllama_caught_kind kind;
};

// What becomes of operator new without memory, within such a call.
enum class no_memory {
    unwinds, // std::bad_alloc, where all that is being made is C++ that can bear it
    strands,
};

// Runs call on another thread, and waits for it; what it throws is thrown here. Throws
// pyllama::refused, before anything is done, where no thread can be had.
void run_apart(no_memory policy, const std::function<void()> & call);

template <class T, class Call>
T guarded_apart(T failed, no_memory policy, Call && call) noexcept {
    return guarded(failed, [&]() -> T {
        T result = failed;
        run_apart(policy, [&] { result = call(); });
        return result;
    });
}

// Frees something: apart where there is a thread for it.
void free_apart(const std::function<void()> & call);

template <class Call> int32_t guarded_free(Call && call) noexcept {
    return guarded([&] { free_apart([&] { call(); }); });
}

// On a thread of run_apart(): tells its caller, and never returns. On others: returns.
void strand(pyllama_caught_kind kind, const char * message) noexcept;

// On a thread of run_apart(): has its caller do it, and returns true after that.
bool ask_home(const std::function<void()> & question);

// From now on a failed allocation of ggml's or of C++'s ends in one of the ways above.
void watch_allocations() noexcept;

// For calls that do not survive the end of memory. Where more than `size` bytes are free, the call is
// made here. Otherwise it is made apart, on a thread that stays where it is when memory ends.
void run_with_memory(size_t size, const std::function<void()> & call);

// Throws pyllama::refused unless `size` bytes are free.
void require_memory(size_t size);

} // namespace pyllama
