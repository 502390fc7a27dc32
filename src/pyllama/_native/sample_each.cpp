#include "guard.hpp"
#include "sampler_chain.hpp"
#include "workers.hpp"

#include <vector>

namespace {

// Of a guarded call on any thread, what it caught goes into the draw: it is kept by thread.
void run(pyllama_draw & draw, const float * logits, int32_t n_vocab) noexcept {
    draw.token = pyllama::guarded(
        PYLLAMA_CAUGHT, [&] { return pyllama::sample(*draw.chain, logits, n_vocab); });
    if (draw.token == PYLLAMA_CAUGHT) {
        draw.caught  = pyllama_caught();
        draw.message = pyllama::guarded<char *>(
            nullptr, [] { return pyllama::copy_string(pyllama_caught_message()); });
    }
}

} // namespace

extern "C" {

// No chain twice, and none with a member written in Python. Where an output does not exist, nothing
// is sampled, and the number of its draw returned, counted from 1.
int32_t guarded_sample_each(llama_context * ctx, pyllama_draw * draws, int32_t n_draws,
                            int32_t n_threads) {
    return pyllama::guarded(PYLLAMA_CAUGHT, [&]() -> int32_t {
        // Asking a context for outputs waits for them, and puts them in order: no work for several.
        std::vector<const float *> logits;
        for (int32_t i = 0; i < n_draws; i++) {
            logits.push_back(llama_get_logits_ith(ctx, draws[i].output));
            if (!logits.back()) {
                return i + 1;
            }
        }
        const int32_t n_vocab = pyllama::vocabulary_size(ctx);
        pyllama::run_each(n_draws, n_threads, [&](int32_t i) {
            run(draws[i], logits[static_cast<size_t>(i)], n_vocab);
        });
        return 0;
    });
}

} // extern "C"
