#include "sample_each.hpp"

extern "C" {

// No chain twice, and none with a member written in Python.
int32_t guarded_sample_each(llama_context * ctx, pyllama_draw * draws, int32_t n_draws,
                            int32_t n_threads) {
    return pyllama::guarded(PYLLAMA_CAUGHT, [&] {
        return pyllama::sample_each(
            ctx, n_draws, n_threads, [&](int32_t i) -> pyllama_draw & { return draws[i]; },
            [&](int32_t i, const float * logits, int32_t n_vocab) {
                return pyllama::sample(*draws[i].chain, logits, n_vocab);
            });
    });
}

} // extern "C"
