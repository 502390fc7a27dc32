#include "apart.hpp"
#include "guard_log.hpp"

#include "common/fit.h"

#include <vector>

using pyllama::guarded_apart;
using pyllama::no_memory;

extern "C" {

// The devices of the model, and after them the host. Returns how many entries were written.
int32_t guarded_device_memory(const char * path, const llama_model_params * model_params,
                              const llama_context_params * context_params,
                              pyllama_device_memory * memory, int32_t room, uint32_t * n_layer,
                              uint32_t * n_ctx_train) {
    return guarded_apart(PYLLAMA_CAUGHT, no_memory::strands, [&] {
        const pyllama::trial            quiet;
        std::vector<ggml_backend_dev_t> devices;
        uint32_t                        n_expert = 0;
        const auto found =
            common_get_device_memory_data(path, model_params, context_params, devices, *n_layer,
                                          *n_ctx_train, n_expert, GGML_LOG_LEVEL_ERROR);
        if (found.size() > static_cast<size_t>(room)) {
            throw std::length_error("more devices than llama.cpp supports");
        }
        for (size_t i = 0; i < found.size(); i++) {
            memory[i] = {i < devices.size() ? devices[i] : nullptr,
                         found[i].total,
                         found[i].free,
                         found[i].model,
                         found[i].context,
                         found[i].compute};
        }
        return static_cast<int32_t>(found.size());
    });
}

// A common_params_fit_status.
int32_t guarded_fit_params(const char * path, llama_model_params * model_params,
                           llama_context_params * context_params, float * tensor_split,
                           llama_model_tensor_buft_override * overrides, size_t * margins,
                           uint32_t n_ctx_min) {
    return guarded_apart(PYLLAMA_CAUGHT, no_memory::strands, [&] {
        const pyllama::trial quiet;
        return static_cast<int32_t>(common_fit_params(path, model_params, context_params,
                                                      tensor_split, overrides, margins, n_ctx_min,
                                                      nullptr, GGML_LOG_LEVEL_ERROR));
    });
}

} // extern "C"
