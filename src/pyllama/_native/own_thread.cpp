#include "own_thread.hpp"

#include "apart.hpp"

#include <exception>
#include <memory>

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>
#else
#include <cstring>
#include <pthread.h>
#endif

namespace {

using work_ptr = std::unique_ptr<std::function<void()>>;

// More than most stacks and what a thread takes when it begins.
constexpr size_t FIRST_NEEDS = 6 << 20;

// Uses its own variables now, while there is memory for them: see thread_state().
void run(work_ptr work) {
    { const pyllama::guard_scope first_use; }
    (*work)();
}

[[noreturn]] void refuse(const std::string & reason) {
    throw pyllama::refused("a thread could not be started: " + reason);
}

#ifdef _WIN32

DWORD WINAPI begin(void * work) {
    run(work_ptr(static_cast<std::function<void()> *>(work)));
    return 0;
}

void start(size_t size, work_ptr & work) {
    HANDLE thread =
        CreateThread(nullptr, size, begin, work.get(), STACK_SIZE_PARAM_IS_A_RESERVATION, nullptr);
    if (!thread) {
        refuse("error " + std::to_string(GetLastError()) + " of Windows");
    }
    CloseHandle(thread);
}

#else

void * begin(void * work) {
    run(work_ptr(static_cast<std::function<void()> *>(work)));
    return nullptr;
}

void start(size_t size, work_ptr & work) {
    constexpr size_t PAGES = 64 * 1024; // macOS takes whole pages only
    pthread_attr_t   attributes;
    pthread_t        thread;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    int failed = pthread_attr_setstacksize(&attributes, (size + PAGES - 1) / PAGES * PAGES);
    if (!failed) {
        failed = pthread_create(&thread, &attributes, begin, work.get());
    }
    pthread_attr_destroy(&attributes);
    if (failed) {
        refuse(std::strerror(failed));
    }
}

#endif

} // namespace

void pyllama::start_thread(size_t stack_size, std::function<void()> work) {
    require_memory(FIRST_NEEDS);
    auto kept = std::make_unique<std::function<void()>>(std::move(work));
    start(stack_size, kept);
    kept.release(); // the thread's now
}
