#include "sampler.hpp"

#include <cmath>
#include <cstring>

using pyllama::guarded;
using pyllama::guarded_init;

namespace pyllama {

bool grammar_allows(llama_sampler * grammar, llama_token token) {
    llama_token_data       only       = {token, 0.0f, 0.0f};
    llama_token_data_array candidates = {&only, 1, -1, false};
    llama_sampler_apply(grammar, &candidates);
    return only.logit != -INFINITY;
}

sampler_ptr clone_sampler(const llama_sampler * sampler) {
    sampler_ptr copy(llama_sampler_clone(sampler));
    forget_pending(copy.get());
    return copy;
}

// A copied adaptive-p remembers the index of a candidate, but not the candidates: accepting that
// token would read past the end of an empty vector. Another token makes it forget.
void forget_pending(llama_sampler * copy) {
    constexpr llama_token no_token = LLAMA_TOKEN_NULL - 1;
    if (!is_python_sampler(copy) && std::strcmp(llama_sampler_name(copy), "adaptive-p") == 0) {
        llama_sampler_accept(copy, no_token);
    }
}

void apply_sampler(llama_sampler * sampler, llama_token_data_array * candidates) {
    llama_token_data * begin = candidates->data;
    llama_sampler_apply(sampler, candidates);
    if (candidates->data != begin) { // xtc drops the first ones so
        std::memmove(begin, candidates->data, candidates->size * sizeof(*begin));
        candidates->data = begin;
    }
}

} // namespace pyllama

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

llama_sampler * guarded_sampler_init_typical(float p, size_t min_keep) {
    return guarded_init([&] { return llama_sampler_init_typical(p, min_keep); });
}

llama_sampler * guarded_sampler_init_temp(float t) {
    return guarded_init([&] { return llama_sampler_init_temp(t); });
}

llama_sampler * guarded_sampler_init_temp_ext(float t, float delta, float exponent) {
    return guarded_init([&] { return llama_sampler_init_temp_ext(t, delta, exponent); });
}

llama_sampler * guarded_sampler_init_xtc(float p, float t, size_t min_keep, uint32_t seed) {
    return guarded_init([&] { return llama_sampler_init_xtc(p, t, min_keep, seed); });
}

llama_sampler * guarded_sampler_init_top_n_sigma(float n) {
    return guarded_init([&] { return llama_sampler_init_top_n_sigma(n); });
}

llama_sampler * guarded_sampler_init_mirostat(int32_t n_vocab, uint32_t seed, float tau, float eta,
                                              int32_t m) {
    return guarded_init([&] { return llama_sampler_init_mirostat(n_vocab, seed, tau, eta, m); });
}

llama_sampler * guarded_sampler_init_mirostat_v2(uint32_t seed, float tau, float eta) {
    return guarded_init([&] { return llama_sampler_init_mirostat_v2(seed, tau, eta); });
}

llama_sampler * guarded_sampler_init_penalties(int32_t n_vocab, int32_t last_n, float repeat,
                                               float freq, float present) {
    return guarded_init(
        [&] { return llama_sampler_init_penalties(n_vocab, last_n, repeat, freq, present); });
}

llama_sampler * guarded_sampler_init_dry(const llama_vocab * vocab, float multiplier, float base,
                                         int32_t allowed_length, int32_t last_n,
                                         const char ** breakers, size_t n_breakers) {
    return guarded_init([&] {
        return llama_sampler_init_dry(vocab, multiplier, base, allowed_length, last_n, breakers,
                                      n_breakers);
    });
}

llama_sampler * guarded_sampler_init_adaptive_p(float target, float decay, uint32_t seed) {
    return guarded_init([&] { return llama_sampler_init_adaptive_p(target, decay, seed); });
}

llama_sampler * guarded_sampler_init_logit_bias(int32_t n_vocab, int32_t n_biases,
                                                const llama_logit_bias * biases) {
    return guarded_init([&] { return llama_sampler_init_logit_bias(n_vocab, n_biases, biases); });
}

llama_sampler * guarded_sampler_init_infill(const llama_vocab * vocab) {
    return guarded_init([&] { return llama_sampler_init_infill(vocab); });
}

int32_t guarded_sampler_apply(llama_sampler * sampler, llama_token_data_array * candidates) {
    return guarded([&] { pyllama::apply_sampler(sampler, candidates); });
}

// A grammar is asked first: a token that it refuses would leave it in no state at all.
int32_t guarded_sampler_accept(llama_sampler * sampler, llama_token token) {
    return guarded(PYLLAMA_CAUGHT, [&]() -> int32_t {
        if (pyllama::is_grammar(sampler) && !pyllama::grammar_allows(sampler, token)) {
            return PYLLAMA_TOKEN_REFUSED;
        }
        llama_sampler_accept(sampler, token);
        return 0;
    });
}

int32_t guarded_sampler_reset(llama_sampler * sampler) {
    return guarded([&] { llama_sampler_reset(sampler); });
}

llama_sampler * guarded_sampler_clone(const llama_sampler * sampler) {
    return guarded_init([&] { return pyllama::clone_sampler(sampler).release(); });
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
