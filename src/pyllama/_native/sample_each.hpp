// Many chains that sample at once.
#pragma once

#include "guard.hpp"
#include "sampler_chain.hpp"
#include "workers.hpp"

#include <cstring>
#include <vector>

namespace pyllama {

// Fills n draws on several threads: draw_of(i) is one of them, and sample(i, logits, n_vocab) gives
// its token or a pyllama_refusal. Where an output does not exist, nothing is sampled, and the number
// of its draw returned, counted from 1.
template <class DrawOf, class Sample>
int32_t sample_each(llama_context * ctx, int32_t n, int32_t n_threads, DrawOf && draw_of,
                    Sample && sample) {
    // Asking a context for outputs waits for them, and puts them in order: no work for several.
    std::vector<const float *> logits;
    for (int32_t i = 0; i < n; i++) {
        logits.push_back(llama_get_logits_ith(ctx, draw_of(i).output));
        if (!logits.back()) {
            return i + 1;
        }
    }
    const int32_t n_vocab = vocabulary_size(ctx);
    run_each(n, n_threads, [&](int32_t i) {
        pyllama_draw & draw = draw_of(i);
        draw.token          = guarded(PYLLAMA_CAUGHT, [&] {
            return sample(i, logits[static_cast<size_t>(i)], n_vocab);
        });
        if (draw.token == PYLLAMA_CAUGHT) { // which is kept by thread
            draw.caught = pyllama_caught();
            std::strncpy(draw.message, pyllama_caught_message(), sizeof(draw.message) - 1);
        }
    });
    return 0;
}

} // namespace pyllama
