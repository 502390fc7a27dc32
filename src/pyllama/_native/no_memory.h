// What ggml does when malloc(), calloc() or realloc() give nothing. It does not look at what they
// return in many places. Where the linker can (no_memory.c), they tell this handler first.
#ifndef PYLLAMA_NO_MEMORY_H
#define PYLLAMA_NO_MEMORY_H

#include <stddef.h>

#ifdef PYLLAMA_WRAPS_MALLOC
#ifdef __cplusplus
extern "C" {
#endif
// The handler may leave by an exception. NULL for none.
__attribute__((visibility("default"))) void pyllama_set_no_memory_handler(void (*handler)(size_t size));
#ifdef __cplusplus
}
#endif
#else
#define pyllama_set_no_memory_handler(handler) ((void) (handler))
#endif

#endif
