#include "guard.hpp"

using pyllama::guarded;

extern "C" {

llama_model * guarded_model_load_from_file(const char * path, const llama_model_params * params) {
    return guarded<llama_model *>(nullptr,
                                  [&] { return llama_model_load_from_file(path, *params); });
}

int32_t guarded_model_free(llama_model * model) {
    return guarded([&] { llama_model_free(model); });
}

int32_t guarded_model_desc(const llama_model * model, char * buffer, size_t size) {
    return guarded(PYLLAMA_CAUGHT, [&] { return llama_model_desc(model, buffer, size); });
}

int32_t guarded_model_meta_key(const llama_model * model, int32_t index, char * buffer, size_t size) {
    return guarded(PYLLAMA_CAUGHT,
                   [&] { return llama_model_meta_key_by_index(model, index, buffer, size); });
}

int32_t guarded_model_meta_val(const llama_model * model, int32_t index, char * buffer, size_t size) {
    return guarded(PYLLAMA_CAUGHT,
                   [&] { return llama_model_meta_val_str_by_index(model, index, buffer, size); });
}

// llama.cpp asks the first layer, and asserts that there is one: not so after vocab_only.
int32_t guarded_model_n_head(const llama_model * model) {
    return guarded(PYLLAMA_CAUGHT, [&] {
        return llama_model_n_layer(model) > 0 ? llama_model_n_head(model) : 0;
    });
}

int32_t guarded_model_n_head_kv(const llama_model * model) {
    return guarded(PYLLAMA_CAUGHT, [&] {
        return llama_model_n_layer(model) > 0 ? llama_model_n_head_kv(model) : 0;
    });
}

const char * guarded_model_chat_template(const llama_model * model, const char * name) {
    return guarded<const char *>(nullptr, [&] { return llama_model_chat_template(model, name); });
}

} // extern "C"
