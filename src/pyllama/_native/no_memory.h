// What happens when malloc(), calloc() or realloc() give ggml nothing. In many places it does not
// look at what they return. Where the linker allows it (no_memory.c), this handler is called first.
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
