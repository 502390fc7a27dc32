// The tokens whose text in an answer is the text that a grammar reads.
//
// A grammar reads control and unknown tokens as their names, which an answer does not show. It stops
// reading at a null character, and does not look at the bytes within a character of UTF-8: where
// these form none, an answer has replacement characters.
#pragma once

#include "token_tree.hpp"

#include <memory>
#include <set>
#include <utility>
#include <vector>

namespace pyllama {

class text_tokens {
  public:
    // shown: those whose names the answer shows.
    text_tokens(std::shared_ptr<const token_tree> tokens, const std::vector<llama_token> & shown)
        : tokens_(std::move(tokens)), shown_(shown.begin(), shown.end()) {}

    // Take a token for shown.
    void show(llama_token token) { shown_.insert(token); }

    // Whether the answer shows a token as it is read.
    bool shows(llama_token token) const {
        return !tokens_->is_misread(token) || shown_.count(token) > 0;
    }

    // The same behind the beginning of a character: some second bytes form no character there.
    bool shows_behind(llama_partial_utf8 begun, llama_token token) const {
        return shows(token) && goes_on(begun, tokens_->first_byte(token));
    }

  private:
    static bool goes_on(llama_partial_utf8 begun, uint8_t byte) {
        if (begun.n_remain == 2) { // 0xD begins surrogates, and 0 would be a longer form of others
            return begun.value == 0 ? byte >= 0xA0 : begun.value == 0xD ? byte < 0xA0 : true;
        }
        if (begun.n_remain == 3) { // the last character is U+10FFFF
            return begun.value == 0 ? byte >= 0x90 : begun.value == 4 ? byte < 0x90 : true;
        }
        return true;
    }

    std::shared_ptr<const token_tree> tokens_;
    std::set<llama_token>             shown_;
};

} // namespace pyllama
