#include "repetition.hpp"

#include <algorithm>

namespace pyllama {

void repetition::push(llama_token token) {
    for (size_t distance = 1; distance <= tokens_.size(); distance++) {
        const size_t before = (next_ + LONGEST - distance) % LONGEST;
        same_[distance]     = tokens_[before] == token ? same_[distance] + 1 : 0;
    }
    if (tokens_.size() < LONGEST) {
        tokens_.push_back(token);
    } else {
        tokens_[next_] = token;
    }
    next_ = (next_ + 1) % LONGEST;
}

size_t repetition::span() const {
    for (size_t length = 1; length <= LONGEST; length++) {
        if (same_[length] + length >= std::max(TIMES * length, FEWEST)) {
            return length;
        }
    }
    return 0;
}

std::vector<llama_token> repetition::last(size_t n_tokens) const {
    std::vector<llama_token> found;
    for (size_t distance = std::min(n_tokens, tokens_.size()); distance > 0; distance--) {
        found.push_back(tokens_[(next_ + LONGEST - distance) % LONGEST]);
    }
    return found;
}

} // namespace pyllama
