// Threads with a stack of a given size; std::thread takes what the system has for a default, which
// is 8 MiB on most Linux systems, 512 KiB on macOS, 128 KiB with musl.
#pragma once

#include <atomic>
#include <cstddef>
#include <functional>

#ifndef _WIN32
#include <pthread.h>
#endif

namespace pyllama {

// Runs the work on a thread of its own, which nobody waits for. The work must not throw.
// Throws pyllama::refused where no thread can be had.
void start_thread(size_t stack_size, std::function<void()> work);

// The only one of a process. It is never destroyed, since its threads sleep in it until the process
// ends. A child of fork() has none of the threads, and gets one of its own.
template <class Threads> Threads & only_one() {
    static std::atomic<Threads *> only{nullptr};
    static const bool             made = [] {
        only = new Threads;
#ifndef _WIN32
        pthread_atfork(nullptr, nullptr, [] { only = new Threads; });
#endif
        return true;
    }();
    static_cast<void>(made);
    return *only;
}

} // namespace pyllama
