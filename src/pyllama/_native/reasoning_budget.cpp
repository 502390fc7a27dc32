#include "sampler.hpp"

#include "common/reasoning-budget.h"

extern "C" {

// The end sequences stand one after the other in ends, n_ends of them, as long as end_sizes says.
llama_sampler * guarded_sampler_init_reasoning_budget(const llama_vocab * vocab,
                                                      const llama_token * start, size_t n_start,
                                                      const llama_token * ends,
                                                      const size_t * end_sizes, size_t n_ends,
                                                      const llama_token * forced, size_t n_forced,
                                                      int32_t budget, bool counting) {
    return pyllama::guarded_init([&] {
        std::vector<llama_tokens> end_seqs;
        for (size_t i = 0; i < n_ends; ++i) {
            end_seqs.emplace_back(ends, ends + end_sizes[i]);
            ends += end_sizes[i];
        }
        return common_reasoning_budget_init(
            vocab, {llama_tokens(start, start + n_start)}, end_seqs,
            llama_tokens(forced, forced + n_forced), budget,
            counting ? REASONING_BUDGET_COUNTING : REASONING_BUDGET_IDLE);
    });
}

} // extern "C"
