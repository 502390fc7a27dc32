// What samples with one chain, and with many (sample_each.cpp).
#pragma once

#include "prelude.h"

namespace pyllama {

// Selects a token by the logits of a vocabulary and accepts it, or returns a pyllama_refusal.
int32_t sample(pyllama_chain & chain, const float * logits, int32_t n_vocab);

// Has a token that was not sampled follow: 0, or PYLLAMA_TOKEN_REFUSED where a grammar does not let it.
int32_t accept(pyllama_chain & chain, llama_token token, bool accept_grammar = true);

// Its grammar, or null.
llama_sampler * grammar_of(const pyllama_chain & chain);

inline int32_t vocabulary_size(const llama_context * ctx) {
    return llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx)));
}

} // namespace pyllama
