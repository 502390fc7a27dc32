// Tokens that may follow, by what has followed the same tokens before.
#pragma once

#include "common/ngram-mod.h"

#include <vector>

namespace pyllama {

// What followed the last tokens of sequences. A token is expected once it was there twice in a row:
// answers of one kind repeat their names and punctuation, and little else.
class draft_table {
  public:
    draft_table() : seen_(N_LAST, N_ENTRIES), confirmed_(N_LAST, N_ENTRIES) {}

    // Tokens of a sequence, the last of which is new. Fewer than there need be say nothing.
    void learn(const std::vector<llama_token> & tokens) {
        if (tokens.size() <= N_LAST) {
            return;
        }
        std::vector<llama_token> last(tokens.end() - ptrdiff_t(N_LAST) - 1, tokens.end());
        if (seen_.get(last.data()) != last.back()) {
            seen_.add(last.data());
            last.back() = common_ngram_mod::EMPTY;
        }
        confirmed_.add(last.data());
    }

    // The tokens that are expected next, at most so many.
    std::vector<llama_token> expected(const std::vector<llama_token> & tokens, int32_t most) const {
        std::vector<llama_token> found;
        if (tokens.size() < N_LAST) {
            return found;
        }
        std::vector<llama_token> last(tokens.end() - ptrdiff_t(N_LAST), tokens.end());
        while (static_cast<int32_t>(found.size()) < most) {
            const llama_token next = confirmed_.get(last.data());
            if (next == common_ngram_mod::EMPTY) {
                break;
            }
            found.push_back(next);
            last.erase(last.begin());
            last.push_back(next);
        }
        return found;
    }

    static constexpr size_t N_LAST = 4;

  private:
    static constexpr size_t N_ENTRIES = size_t(1) << 16;

    common_ngram_mod seen_;
    common_ngram_mod confirmed_;
};

} // namespace pyllama
