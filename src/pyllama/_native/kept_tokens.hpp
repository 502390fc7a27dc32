// The tokens of texts that a vocabulary was asked for before. Prompts of one program have most of
// their texts in common.
#pragma once

#include "prelude.h"

#include <list>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace pyllama {

// Any number of threads may use it at once. None waits for another: where one looks something up,
// the others do without. The least recently used texts are forgotten first.
class kept_tokens {
  public:
    // Appends the tokens of a text if they are known.
    bool find(std::string_view text, std::vector<llama_token> & tokens);

    // Keeps those from `begin` on, which a text was made into.
    void keep(std::string_view text, const std::vector<llama_token> & tokens, size_t begin);

  private:
    struct entry {
        std::string              text;
        std::vector<llama_token> tokens;

        size_t size() const;
    };

    std::mutex                                                       mutex;
    std::list<entry>                                                 entries; // the last asked for first
    std::unordered_map<std::string_view, std::list<entry>::iterator> places;
    size_t                                                           n_bytes = 0;
};

} // namespace pyllama
