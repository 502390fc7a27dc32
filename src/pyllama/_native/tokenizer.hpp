// What makes tokens of text (vocab.cpp).
#pragma once

#include "kept_tokens.hpp"
#include "special_tokens.hpp"

#include <string>
#include <string_view>
#include <vector>

struct pyllama_tokenizer {
    pyllama::special_tokens special;
    std::string             pre;    // the name of the pre-tokenizer
    bool                    splits; // with regular expressions

    mutable pyllama::kept_tokens kept{}; // of texts between special tokens
};

namespace pyllama {

// The tokens of a text, without those that the vocabulary adds around it. With parse_special, names
// of control tokens are those, where no byte of theirs lies in a literal range.
std::vector<llama_token> tokens_of(const llama_vocab * vocab, const pyllama_tokenizer & tokenizer,
                                   std::string_view text, bool parse_special,
                                   const std::vector<byte_range> & literal = {});

} // namespace pyllama
