#include "ending.hpp"

#include "guard_log.hpp"
#include "interrupt.hpp"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>

#ifdef __GLIBC__
#include <unistd.h>
#endif

namespace {

// Threads inside guarded calls, counted in several places so that threads do not wait for each
// other's cache line.
struct alignas(64) count {
    std::atomic<int32_t> value{0};
};

constexpr uint32_t N_COUNTS = 16;

count                 inside[N_COUNTS];
std::atomic<uint32_t> next_count{0};
std::atomic<bool>     is_ending{false};

count & my_count() {
    thread_local count & mine = inside[next_count++ % N_COUNTS];
    return mine;
}

void call_python_no_more() {
    pyllama::hand_log_to(nullptr);
    pyllama::poll_signals_by(nullptr);
}

} // namespace

namespace pyllama {

bool enter_guard() noexcept {
    // Both in this order: pyllama_end() sets the flag first, and then looks at the counts.
    my_count().value++;
    return !is_ending;
}

void leave_guard() noexcept {
    my_count().value--;
}

bool ending() noexcept {
    return is_ending;
}

void park() noexcept {
    for (;;) {
        std::this_thread::sleep_for(std::chrono::hours(24));
    }
}

} // namespace pyllama

extern "C" {

// From here on every guarded call is refused, and computations stop.
void pyllama_end(void) {
    is_ending = true;
}

// Whether no thread is inside a guarded call any more, after waiting for so long at most.
bool pyllama_wait_until_left(int32_t milliseconds) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(milliseconds);
    for (;;) {
        int32_t n = 0;
        for (const count & place : inside) {
            n += place.value;
        }
        if (n == 0) {
            call_python_no_more();
            return true;
        }
        if (std::chrono::steady_clock::now() >= until) {
            return false;
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
}

// Waits for what a context's devices compute, when nothing else may call it any more.
void pyllama_settle_context(llama_context * ctx) {
    const pyllama::guard_scope scope;
    try {
        llama_synchronize(ctx);
    } catch (...) { // a lost device: there is nothing to wait for
    }
}

// For when a thread is still in C at the very end: what it uses must not be destroyed under it.
void pyllama_leave_without_destructors(void) {
    call_python_no_more();
#ifdef __GLIBC__
    on_exit(
        [](int status, void *) {
            std::fflush(nullptr);
            _exit(status);
        },
        nullptr);
#endif
}

} // extern "C"
