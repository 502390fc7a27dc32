// The end of a text that repeats itself: the same tokens again and again, with nothing between.
#pragma once

#include "llama.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace pyllama {

class repetition {
  public:
    static constexpr size_t LONGEST = 64; // tokens of what is repeated
    static constexpr size_t TIMES   = 8;  // that it comes
    static constexpr size_t FEWEST  = 64; // tokens of all of that together

    void push(llama_token token);

    // How many tokens at the end are one span that was repeated often enough, the least; or 0.
    size_t span() const;

    // The tokens of a span, oldest first.
    std::vector<llama_token> last(size_t n_tokens) const;

  private:
    std::vector<llama_token>          tokens_; // the last LONGEST of them, in a ring
    size_t                            next_ = 0;
    std::array<uint32_t, LONGEST + 1> same_{}; // by distance, how many tokens are as those before
};

} // namespace pyllama
