#include "guard.hpp"

#include "common/common.h"

using pyllama::guarded;

extern "C" {

int32_t guarded_backend_init(const char * folder) {
    return guarded([&] {
        llama_backend_init();
        ggml_backend_load_all_from_path(folder);
    });
}

int32_t guarded_dev_memory(ggml_backend_dev_t device, size_t * free, size_t * total) {
    return guarded([&] { ggml_backend_dev_memory(device, free, total); });
}

// NULL-terminated by a feature without a name; NULL when the backend reports none.
const ggml_backend_feature * guarded_reg_features(ggml_backend_reg_t reg) {
    return guarded<const ggml_backend_feature *>(nullptr, [&]() -> const ggml_backend_feature * {
        auto get_features = reinterpret_cast<ggml_backend_get_features_t>(
            ggml_backend_reg_get_proc_address(reg, "ggml_backend_get_features"));
        return get_features ? get_features(reg) : nullptr;
    });
}

int32_t guarded_cpu_math_cores(void) {
    return guarded(PYLLAMA_CAUGHT, [] { return common_cpu_get_num_math(); });
}

} // extern "C"
