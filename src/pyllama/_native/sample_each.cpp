#include "sample_each.hpp"

extern "C" {

// No chain twice, and none with a member written in Python. Where an output does not exist, nothing is
// sampled, and the number of its draw returned, counted from 1.
int32_t guarded_sample_each(llama_context * ctx, pyllama_draw * draws, int32_t n_draws,
                            int32_t n_threads) {
    return pyllama::guarded(PYLLAMA_CAUGHT, [&] {
        // Asking a context for outputs waits for them, and puts them in order: no work for several.
        std::vector<const float *> logits;
        for (int32_t i = 0; i < n_draws; i++) {
            logits.push_back(llama_get_logits_ith(ctx, draws[i].output));
            if (!logits.back()) {
                return i + 1;
            }
        }
        const int32_t n_vocab = pyllama::vocabulary_size(ctx);
        pyllama::draw_each(
            n_draws, n_threads, [&](int32_t i) -> pyllama_draw & { return draws[i]; },
            [&](int32_t i) {
                return pyllama::sample(*draws[i].chain, logits[static_cast<size_t>(i)], n_vocab);
            });
        return 0;
    });
}

} // extern "C"
