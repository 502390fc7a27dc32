#include "interrupt.hpp"

#include "ending.hpp"
#include "guard.hpp"

#include <atomic>
#include <new>

// Written by the threads of Python's that compute and that cancel, read by those of backends.
struct pyllama_interrupt {
    std::atomic<bool>    cancelled{false};    // stop at the next node of the graph
    std::atomic<bool>    poll_signals{false}; // the caller is Python's main thread: look for Ctrl-C
    std::atomic<int64_t> last_poll_us{0};
};

namespace {

std::atomic<bool (*)(void)> poll_handler{nullptr};

} // namespace

void pyllama::poll_signals_by(bool (*poll)(void)) noexcept {
    poll_handler = poll;
}

extern "C" {

// NULL where there is no memory.
pyllama_interrupt * pyllama_interrupt_init(void) {
    return new (std::nothrow) pyllama_interrupt;
}

void pyllama_interrupt_free(pyllama_interrupt * interrupt) {
    delete interrupt;
}

// A computation begins, which nobody has cancelled.
void pyllama_interrupt_begin(pyllama_interrupt * interrupt, bool poll_signals) {
    interrupt->cancelled    = false;
    interrupt->poll_signals = poll_signals;
}

void pyllama_interrupt_cancel(pyllama_interrupt * interrupt) {
    interrupt->cancelled = true;
}

// The abort callback of every context: llama.cpp asks before each node of the graph.
bool pyllama_should_stop(void * data) {
    constexpr int64_t POLL_INTERVAL_US = 50'000;

    auto * interrupt = static_cast<pyllama_interrupt *>(data);
    if (interrupt->cancelled || pyllama::ending()) {
        return true;
    }
    if (interrupt->poll_signals) {
        const int64_t now = llama_time_us();
        if (now - interrupt->last_poll_us >= POLL_INTERVAL_US) {
            interrupt->last_poll_us = now;
            bool stop = false;
            if (auto poll = poll_handler.load()) {
                pyllama::call_python([&] { stop = poll(); });
            }
            return stop;
        }
    }
    return false;
}

} // extern "C"
