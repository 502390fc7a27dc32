#include "guard.hpp"

using pyllama::guarded;

namespace {

template <class Init> llama_sampler * guarded_init(Init && init) {
    return guarded<llama_sampler *>(nullptr, std::forward<Init>(init));
}

} // namespace

extern "C" {

llama_sampler * guarded_sampler_init_greedy(void) {
    return guarded_init([] { return llama_sampler_init_greedy(); });
}

llama_sampler * guarded_sampler_init_dist(uint32_t seed) {
    return guarded_init([&] { return llama_sampler_init_dist(seed); });
}

llama_sampler * guarded_sampler_init_top_k(int32_t k) {
    return guarded_init([&] { return llama_sampler_init_top_k(k); });
}

llama_sampler * guarded_sampler_init_top_p(float p, size_t min_keep) {
    return guarded_init([&] { return llama_sampler_init_top_p(p, min_keep); });
}

llama_sampler * guarded_sampler_init_min_p(float p, size_t min_keep) {
    return guarded_init([&] { return llama_sampler_init_min_p(p, min_keep); });
}

llama_sampler * guarded_sampler_init_temp(float t) {
    return guarded_init([&] { return llama_sampler_init_temp(t); });
}

llama_sampler * guarded_sampler_init_penalties(int32_t n_vocab, int32_t last_n, float repeat,
                                               float freq, float present) {
    return guarded_init(
        [&] { return llama_sampler_init_penalties(n_vocab, last_n, repeat, freq, present); });
}

llama_sampler * guarded_sampler_chain_init(void) {
    return guarded_init(
        [] { return llama_sampler_chain_init(llama_sampler_chain_default_params()); });
}

int32_t guarded_sampler_chain_add(llama_sampler * chain, llama_sampler * sampler) {
    return guarded([&] { llama_sampler_chain_add(chain, sampler); });
}

// LLAMA_TOKEN_NULL when the last decode made no output at index i.
int32_t guarded_sampler_sample(llama_sampler * chain, llama_context * ctx, int32_t i) {
    return guarded(PYLLAMA_CAUGHT, [&]() -> int32_t {
        if (!llama_get_logits_ith(ctx, i)) {
            return LLAMA_TOKEN_NULL;
        }
        return llama_sampler_sample(chain, ctx, i);
    });
}

int32_t guarded_sampler_accept(llama_sampler * sampler, llama_token token) {
    return guarded([&] { llama_sampler_accept(sampler, token); });
}

int32_t guarded_sampler_reset(llama_sampler * sampler) {
    return guarded([&] { llama_sampler_reset(sampler); });
}

int32_t guarded_sampler_free(llama_sampler * sampler) {
    return guarded([&] { llama_sampler_free(sampler); });
}

const char * guarded_sampler_name(const llama_sampler * sampler) {
    return guarded<const char *>(nullptr, [&] { return llama_sampler_name(sampler); });
}

uint32_t guarded_sampler_get_seed(const llama_sampler * sampler) {
    return guarded<uint32_t>(LLAMA_DEFAULT_SEED, [&] { return llama_sampler_get_seed(sampler); });
}

} // extern "C"
