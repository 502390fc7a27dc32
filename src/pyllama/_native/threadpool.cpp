#include "apart.hpp"
#include "compute_threads.hpp"

#include "ggml-cpu.h"

using pyllama::guarded;
using pyllama::guarded_apart;
using pyllama::guarded_free;
using pyllama::no_memory;

namespace {

// The CPU backend may be a module that was loaded at run time: its functions are found by name.
template <class Function> Function cpu_function(const char * name) {
    ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    if (!device) {
        throw std::runtime_error("no CPU backend is loaded");
    }
    void * address = ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), name);
    if (!address) {
        throw std::runtime_error(std::string("the CPU backend has no ") + name);
    }
    return reinterpret_cast<Function>(address);
}

} // namespace

extern "C" {

ggml_threadpool * guarded_threadpool_new(ggml_threadpool_params * params) {
    return guarded_apart<ggml_threadpool *>(nullptr, no_memory::strands, [&] {
        pyllama::require_compute_threads(params->n_threads);
        return cpu_function<decltype(&ggml_threadpool_new)>("ggml_threadpool_new")(params);
    });
}

int32_t guarded_threadpool_free(ggml_threadpool * threadpool) {
    return guarded_free([&] {
        cpu_function<decltype(&ggml_threadpool_free)>("ggml_threadpool_free")(threadpool);
    });
}

int32_t guarded_attach_threadpool(llama_context * ctx, ggml_threadpool * threadpool,
                                  ggml_threadpool * threadpool_batch) {
    return guarded([&] { llama_attach_threadpool(ctx, threadpool, threadpool_batch); });
}

int32_t guarded_detach_threadpool(llama_context * ctx) {
    return guarded([&] { llama_detach_threadpool(ctx); });
}

} // extern "C"
