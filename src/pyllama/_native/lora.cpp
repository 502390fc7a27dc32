#include "apart.hpp"

#include "gguf_file.hpp"

#include "common/common.h"

#include <cstdlib>
#include <cstring>
#include <map>

using pyllama::gguf_file;
using pyllama::guarded;
using pyllama::guarded_apart;
using pyllama::guarded_free;
using pyllama::no_memory;

namespace {

constexpr int64_t MAX_LAYERS = 512;     // LLAMA_MAX_LAYERS
constexpr int64_t MAX_N_EMBD = 1 << 20; // more than any model has

bool ends_with(const std::string & text, const std::string & end) {
    return text.size() >= end.size() && !text.compare(text.size() - end.size(), end.size(), end);
}

bool can_multiply(ggml_type type) {
    return type == GGML_TYPE_F32 || ggml_get_type_traits(type)->to_float;
}

// llama.cpp compares the outer dimensions with the model's. What it takes on trust is checked here:
// the rest would be an assertion, or a read past the end, in the middle of a decode.
void check_lora(const gguf_file & file, int64_t n_expert) {
    std::map<std::string, std::pair<const ggml_tensor *, const ggml_tensor *>> pairs;
    for (int64_t id = 0; id < file.count(); id++) {
        const std::string   name   = file.name(id);
        const ggml_tensor * tensor = file.tensor(id);
        const bool          is_a   = ends_with(name, ".lora_a");
        if (!is_a && !ends_with(name, ".lora_b")) {
            continue;
        }
        if (!can_multiply(tensor->type) || ggml_nelements(tensor) == 0) {
            throw std::runtime_error("tensor " + name + " is empty or of type " +
                                     ggml_type_name(tensor->type));
        }
        auto & pair = pairs[name.substr(0, name.size() - std::strlen(".lora_a"))];
        (is_a ? pair.first : pair.second) = tensor;
    }
    for (const auto & [name, pair] : pairs) {
        const auto [a, b] = pair;
        if (!a || !b) {
            throw std::runtime_error("tensor " + name + " has only one of lora_a and lora_b");
        }
        const bool    embeds  = ends_with(name, "token_embd.weight");
        const bool    experts = name.find("_exps.") != std::string::npos;
        const int64_t depth   = experts ? n_expert : 1;
        const bool    fits    = (embeds ? a->ne[0] : a->ne[1]) == b->ne[0] && a->ne[2] == depth &&
                                b->ne[2] == depth && a->ne[3] == 1 && b->ne[3] == 1;
        if (!fits) {
            throw std::runtime_error("the shapes of lora_a and lora_b of " + name +
                                     " do not fit each other");
        }
    }
}

void check_control_vector(const gguf_file & file) {
    if (!file.count()) {
        throw std::runtime_error("the file holds no tensors");
    }
    const int64_t n_embd = file.tensor(0)->ne[0];
    for (int64_t id = 0; id < file.count(); id++) {
        const std::string   name   = file.name(id);
        const ggml_tensor * tensor = file.tensor(id);
        const std::string   prefix = "direction.";
        char *              end    = nullptr;
        const long layer = name.compare(0, prefix.size(), prefix)
                               ? 0
                               : std::strtol(name.c_str() + prefix.size(), &end, 10);
        if (layer < 1 || layer > MAX_LAYERS || *end) {
            throw std::runtime_error("tensor " + name + " is no direction of a layer (direction.1)");
        }
        if (tensor->type != GGML_TYPE_F32 || ggml_n_dims(tensor) != 1 || tensor->ne[0] != n_embd ||
            n_embd < 1 || n_embd > MAX_N_EMBD) {
            throw std::runtime_error("tensor " + name + " is not of one row of F32 like the others");
        }
    }
}

} // namespace

extern "C" {

llama_adapter_lora * guarded_adapter_lora_init(llama_model * model, const char * path,
                                               int64_t n_expert) {
    return guarded_apart<llama_adapter_lora *>(nullptr, no_memory::unwinds, [&] {
        check_lora(gguf_file(path), n_expert);
        return llama_adapter_lora_init(model, path);
    });
}

int32_t guarded_adapter_lora_free(llama_adapter_lora * adapter) {
    return guarded_free([&] { llama_adapter_lora_free(adapter); });
}

int32_t guarded_adapter_meta_key(const llama_adapter_lora * adapter, int32_t index, char * buffer,
                                 size_t size) {
    return guarded(PYLLAMA_CAUGHT,
                   [&] { return llama_adapter_meta_key_by_index(adapter, index, buffer, size); });
}

int32_t guarded_adapter_meta_val(const llama_adapter_lora * adapter, int32_t index, char * buffer,
                                 size_t size) {
    return guarded(PYLLAMA_CAUGHT, [&] {
        return llama_adapter_meta_val_str_by_index(adapter, index, buffer, size);
    });
}

int32_t guarded_set_adapters_lora(llama_context * ctx, llama_adapter_lora ** adapters,
                                  size_t n_adapters, float * scales) {
    return guarded(PYLLAMA_CAUGHT,
                   [&] { return llama_set_adapters_lora(ctx, adapters, n_adapters, scales); });
}

int32_t guarded_set_adapter_cvec(llama_context * ctx, const float * data, size_t len,
                                 int32_t n_embd, int32_t il_start, int32_t il_end) {
    return guarded(PYLLAMA_CAUGHT, [&] {
        return llama_set_adapter_cvec(ctx, data, len, n_embd, il_start, il_end);
    });
}

// The rows of layers 1 to n_layers, for the caller to free.
float * guarded_control_vector_load(const char * path, int32_t * n_layers, int32_t * n_embd) {
    return guarded_apart<float *>(nullptr, no_memory::unwinds, [&]() -> float * {
        check_control_vector(gguf_file(path));
        const auto loaded = common_control_vector_load({{/*strength*/ 1.0f, path}});
        if (loaded.n_embd < 1) {
            throw std::runtime_error("llama.cpp could not read its directions");
        }
        const size_t bytes = loaded.data.size() * sizeof(float);
        auto *       copy  = static_cast<float *>(std::malloc(bytes));
        if (!copy) {
            throw std::bad_alloc();
        }
        std::memcpy(copy, loaded.data.data(), bytes);
        *n_embd   = loaded.n_embd;
        *n_layers = static_cast<int32_t>(loaded.data.size() / loaded.n_embd);
        return copy;
    });
}

} // extern "C"
