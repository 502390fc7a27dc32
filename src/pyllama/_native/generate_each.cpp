// Many sequences that go on by several tokens in one call: decode, sample each, decode again.
//
// Python's interpreter is not asked in between. Where its other threads keep it busy, a thread gets
// it back after milliseconds, which is longer than a GPU takes for a step.
#include "context.hpp"
#include "running_sequence.hpp"

#include <algorithm>
#include <chrono>
#include <vector>

using pyllama::running_sequence;

extern "C" {

// max_paused: how many runs may have paused, and wait for the others, before all are handed back.
// n_steps: decodes that were done. Where a later one fails, the runs hold what was sampled before it.
int32_t guarded_generate_each(llama_context * ctx, const llama_batch * batch, pyllama_run * runs,
                              int32_t n_runs, int32_t max_steps, int32_t max_paused, double seconds,
                              int32_t n_threads, int32_t * n_steps) {
    using clock = std::chrono::steady_clock;
    return pyllama::guarded(PYLLAMA_CAUGHT, [&]() -> int32_t {
        const auto begun = clock::now();
        const auto left  = [&] {
            return std::chrono::duration<double>(clock::now() - begun).count() < seconds;
        };
        const llama_vocab *   vocab = llama_model_get_vocab(llama_get_model(ctx));
        std::vector<running_sequence> all;
        all.reserve(static_cast<size_t>(n_runs));
        for (int32_t i = 0; i < n_runs; i++) {
            all.emplace_back(runs[i], vocab);
        }
        std::vector<running_sequence *> going_on;
        for (running_sequence & one : all) {
            going_on.push_back(&one);
        }
        pyllama::batch_rows next;
        const size_t fewest = all.size() - std::min(all.size(), static_cast<size_t>(max_paused));
        llama_batch  rows   = *batch;
        int32_t      code   = 0;
        while (true) {
            code = pyllama::decode(ctx, rows);
            if (code != 0) {
                break;
            }
            ++*n_steps;
            for (running_sequence * one : going_on) {
                one->computed();
            }
            pyllama::sample_each_of(ctx, going_on, n_threads);
            going_on.erase(std::remove_if(going_on.begin(), going_on.end(),
                                          [](const running_sequence * one) { return !one->goes_on(); }),
                           going_on.end());
            if (*n_steps >= max_steps || going_on.empty() || going_on.size() < fewest || !left()) {
                break;
            }
            next.clear();
            for (running_sequence * one : going_on) {
                next.add(*one);
            }
            rows = next.batch();
            if (static_cast<uint32_t>(rows.n_tokens) > llama_n_batch(ctx)) {
                break;
            }
        }
        return code;
    });
}

} // extern "C"
