#include "deep_stack.hpp"

#include "guard.hpp"
#include "own_thread.hpp"

#include <condition_variable>
#include <cstdint>
#include <mutex>

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <intrin.h>
#include <windows.h>
#else
#include <pthread.h>
#endif

namespace {

struct task {
    const std::function<void()> & call;
    std::exception_ptr            thrown;
};

void run(task & todo) {
    const pyllama::guard_scope scope; // assertions become exceptions on this thread, too
    try {
        todo.call();
    } catch (...) {
        todo.thrown = std::current_exception();
    }
}

void run_and_wait(size_t size, task & todo) {
    std::mutex              mutex;
    std::condition_variable change;
    bool                    done = false;
    pyllama::start_thread(size, [&] {
        run(todo);
        const std::lock_guard lock(mutex);
        done = true;
        change.notify_all();
    });
    std::unique_lock lock(mutex);
    change.wait(lock, [&] { return done; });
}

uintptr_t stack_pointer() {
#ifdef _MSC_VER
    return reinterpret_cast<uintptr_t>(_AddressOfReturnAddress());
#else
    return reinterpret_cast<uintptr_t>(__builtin_frame_address(0));
#endif
}

// Where this thread's stack ends, or what is safe to assume.
uintptr_t stack_end() {
#ifdef __linux__
    pthread_attr_t attributes;
    if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
        void *     begin;
        size_t     size;
        const bool known = pthread_attr_getstack(&attributes, &begin, &size) == 0;
        pthread_attr_destroy(&attributes);
        if (known) {
            return reinterpret_cast<uintptr_t>(begin);
        }
    }
#endif
#ifdef __APPLE__
    return reinterpret_cast<uintptr_t>(pthread_get_stackaddr_np(pthread_self())) -
           pthread_get_stacksize_np(pthread_self());
#endif
#ifdef _WIN32
    ULONG_PTR low, high;
    GetCurrentThreadStackLimits(&low, &high);
    return low;
#endif
    constexpr uintptr_t ASSUMED_STACK = 64 * 1024;
    return stack_pointer() - ASSUMED_STACK;
}

size_t stack_left() {
    thread_local const uintptr_t end  = stack_end();
    const uintptr_t              here = stack_pointer();
    return here > end ? here - end : 0;
}

} // namespace

void pyllama::run_with_stack(size_t size, const std::function<void()> & call) {
    constexpr size_t MARGIN = 256 * 1024;
    if (size + MARGIN <= stack_left()) {
        return call();
    }
    if (size > DEEPEST_STACK) {
        throw std::bad_alloc();
    }
    task todo{call, nullptr};
    run_and_wait(size + MARGIN, todo);
    if (todo.thrown) {
        std::rethrow_exception(todo.thrown);
    }
}
