#include "own_thread.hpp"

#include "apart.hpp"
#include "thread_memory.hpp"

#include <condition_variable>
#include <mutex>
#include <utility>

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>
#else
#include <cstring>
#include <pthread.h>
#endif

namespace {

// A thread that begins, and tells whoever started it whether it has the memory to go on.
struct beginning {
    std::function<void()>   work;
    std::mutex              mutex;
    std::condition_variable change;
    enum { WAITS, GOES_ON, LACKS_MEMORY } state = WAITS;
};

// More than most stacks and what a thread takes when it begins.
constexpr size_t FIRST_NEEDS = 6 << 20;

void run(beginning & begun) {
    const bool            settled = pyllama::settle_thread();
    std::function<void()> work;
    {
        const std::lock_guard lock(begun.mutex);
        work.swap(begun.work);
        begun.state = settled ? beginning::GOES_ON : beginning::LACKS_MEMORY;
        begun.change.notify_all();
    }
    if (settled) {
        work();
    }
}

[[noreturn]] void refuse(const std::string & reason) {
    throw pyllama::refused("a thread could not be started: " + reason);
}

#ifdef _WIN32

DWORD WINAPI begin(void * work) {
    run(*static_cast<beginning *>(work));
    return 0;
}

void start(size_t size, beginning & begun) {
    HANDLE thread =
        CreateThread(nullptr, size, begin, &begun, STACK_SIZE_PARAM_IS_A_RESERVATION, nullptr);
    if (!thread) {
        refuse("error " + std::to_string(GetLastError()) + " of Windows");
    }
    CloseHandle(thread);
}

#else

void * begin(void * work) {
    run(*static_cast<beginning *>(work));
    return nullptr;
}

void start(size_t size, beginning & begun) {
    constexpr size_t PAGES = 64 * 1024; // macOS takes whole pages only
    pthread_attr_t   attributes;
    pthread_t        thread;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    int failed = pthread_attr_setstacksize(&attributes, (size + PAGES - 1) / PAGES * PAGES);
    if (!failed) {
        failed = pthread_create(&thread, &attributes, begin, &begun);
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
    beginning begun;
    begun.work = std::move(work);
    start(stack_size, begun);
    std::unique_lock lock(begun.mutex);
    begun.change.wait(lock, [&] { return begun.state != beginning::WAITS; });
    if (begun.state == beginning::LACKS_MEMORY) {
        refuse("it lacks memory for what it keeps");
    }
}
