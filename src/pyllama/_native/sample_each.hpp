// Many chains that sample at once.
#pragma once

#include "guard.hpp"
#include "sampler_chain.hpp"
#include "workers.hpp"

#include <cstring>
#include <vector>

namespace pyllama {

// Fills n draws on several threads: draw_of(i) is one of them, and sample(i) gives its token or a
// pyllama_refusal.
template <class DrawOf, class Sample>
void draw_each(int32_t n, int32_t n_threads, DrawOf && draw_of, Sample && sample) {
    run_each(n, n_threads, [&](int32_t i) {
        pyllama_draw & draw = draw_of(i);
        draw.token          = guarded(PYLLAMA_CAUGHT, [&] { return sample(i); });
        if (draw.token == PYLLAMA_CAUGHT) { // which is kept by thread
            draw.caught = pyllama_caught();
            std::strncpy(draw.message, pyllama_caught_message(), sizeof(draw.message) - 1);
        }
    });
}

} // namespace pyllama
