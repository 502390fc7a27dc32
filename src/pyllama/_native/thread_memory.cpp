#include "thread_memory.hpp"

#include "thread_state.hpp"

#if defined(__GLIBC__) && (defined(__x86_64__) || defined(__aarch64__))
#define PYLLAMA_LAZY_THREAD_MEMORY 1

#include <cstddef>
#include <cstdlib>
#include <link.h>
#include <pthread.h>

// What the compiler calls for a variable of a thread.
extern "C" void * __tls_get_addr(size_t * module_and_offset);

#endif

#ifdef PYLLAMA_LAZY_THREAD_MEMORY

namespace {

// Libraries with more are left to their first use: linear algebra takes that much for each thread.
constexpr size_t MOST_OF_A_LIBRARY = 128 << 10;

// Other threads take memory meanwhile, and malloc() takes more at once than it is asked for.
constexpr size_t ROOM = 2 << 20;

// Says for each thread whether it is settled. A variable of the thread would be one of those that
// take memory, or would take from the little that a process has for all libraries like that.
struct settled_key {
    pthread_key_t key{};
    const bool    made = pthread_key_create(&key, nullptr) == 0;
};

const settled_key settled;

struct missing {
    size_t modules[64];
    size_t count = 0;
    size_t size  = 0;

    void note(const dl_phdr_info & info) {
        if (info.dlpi_tls_modid == 0 || info.dlpi_tls_data || count == sizeof(modules) / sizeof(*modules)) {
            return;
        }
        for (int i = 0; i < info.dlpi_phnum; i++) {
            const auto & segment = info.dlpi_phdr[i];
            if (segment.p_type == PT_TLS && segment.p_memsz <= MOST_OF_A_LIBRARY) {
                modules[count++] = info.dlpi_tls_modid;
                size += segment.p_memsz + segment.p_align;
            }
        }
    }
};

bool take_memory() {
    missing found;
    dl_iterate_phdr(
        [](dl_phdr_info * info, size_t, void * found) {
            static_cast<missing *>(found)->note(*info);
            return 0;
        },
        &found);
    // volatile, as compilers leave out a block of memory that nobody uses
    void * volatile room = std::malloc(found.size + ROOM);
    if (!room) {
        return false;
    }
    std::free(room);
    for (size_t i = 0; i < found.count; i++) {
        size_t first_variable[] = {found.modules[i], 0};
        __tls_get_addr(first_variable);
    }
    return true;
}

} // namespace

bool pyllama::is_settled() noexcept {
    return !settled.made || pthread_getspecific(settled.key);
}

bool pyllama::settle_thread() noexcept {
    if (is_settled()) {
        return true;
    }
    if (!take_memory()) {
        return false;
    }
    this_thread(); // has a destructor, which takes memory as well
    return pthread_setspecific(settled.key, &settled) == 0;
}

#else

bool pyllama::is_settled() noexcept {
    return true;
}

bool pyllama::settle_thread() noexcept {
    return true;
}

#endif
