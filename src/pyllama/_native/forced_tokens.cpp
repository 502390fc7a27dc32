#include "forced_tokens.hpp"

#include "grammar_sampler.hpp"
#include "tokenizer.hpp"

#include "common/common.h"

#include <algorithm>
#include <string>

namespace pyllama {

std::vector<llama_token> forced_tokens(llama_sampler * grammar, const llama_vocab * vocab,
                                       const pyllama_forcing & forcing) {
    const std::string text = forced_text(grammar);
    if (text.empty()) {
        return {};
    }
    const auto tokens = tokens_of(vocab, *forcing.tokenizer, text, false);
    const size_t n    = std::min(std::max(tokens.size(), size_t(1)) - 1,
                                 static_cast<size_t>(std::max(forcing.most, 0)));
    if (n == 0 || n < static_cast<size_t>(std::max(forcing.fewest, 0))) {
        return {};
    }
    std::vector<llama_token> forced(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(n));
    // Some tokenizers add a space in front, and a text may contain the name of a control token.
    std::string spelled;
    for (const llama_token token : forced) {
        spelled += common_token_to_piece(vocab, token);
    }
    const llama_token * end = forcing.never + forcing.n_never;
    if (text.compare(0, spelled.size(), spelled) != 0 ||
        tokens_of(vocab, *forcing.tokenizer, text, true) != tokens ||
        std::find_first_of(forced.begin(), forced.end(), forcing.never, end) != forced.end() ||
        !budget_fits(grammar, forced)) {
        return {};
    }
    return forced;
}

} // namespace pyllama
