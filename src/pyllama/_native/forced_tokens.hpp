// The tokens of a text that a grammar forces.
#pragma once

#include "prelude.h"

#include <vector>

namespace pyllama {

// The tokens that begin whatever may follow, as the tokenizer gives them; none where that is not
// what sampling could have given. The last of the forced text is left out: it may become a part of a
// longer one.
std::vector<llama_token> forced_tokens(llama_sampler * grammar, const llama_vocab * vocab,
                                       const pyllama_forcing & forcing);

} // namespace pyllama
