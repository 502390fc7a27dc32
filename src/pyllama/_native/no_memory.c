// Linked into ggml-base with --wrap for each of these functions.
#include "no_memory.h"

void * __real_malloc(size_t size);
void * __real_calloc(size_t count, size_t size);
void * __real_realloc(void * memory, size_t size);
int    __real_posix_memalign(void ** memory, size_t alignment, size_t size);

// Larger blocks are buffers of tensors, where ggml does look.
#define LARGE (1 << 20)

static void (*on_no_memory)(size_t size);

void pyllama_set_no_memory_handler(void (*handler)(size_t size)) {
    __atomic_store_n(&on_no_memory, handler, __ATOMIC_RELEASE);
}

static void tell(size_t size) {
    void (*handler)(size_t) = __atomic_load_n(&on_no_memory, __ATOMIC_ACQUIRE);
    if (handler) {
        handler(size);
    }
}

void * __wrap_malloc(size_t size) {
    void * memory = __real_malloc(size);
    if (!memory && size) {
        tell(size);
    }
    return memory;
}

void * __wrap_calloc(size_t count, size_t size) {
    void * memory = __real_calloc(count, size);
    if (!memory && count && size) {
        tell(count * size);
    }
    return memory;
}

void * __wrap_realloc(void * old, size_t size) {
    void * memory = __real_realloc(old, size);
    if (!memory && size) {
        tell(size);
    }
    return memory;
}

int __wrap_posix_memalign(void ** memory, size_t alignment, size_t size) {
    const int failed = __real_posix_memalign(memory, alignment, size);
    if (failed && size < LARGE) {
        tell(size);
    }
    return failed;
}
