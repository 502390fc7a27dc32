// The tokens of a vocabulary by their characters: what begins alike is looked at once.
#pragma once

#include "prelude.h"

#include "src/llama-grammar.h"

#include <unordered_map>
#include <vector>

namespace pyllama {

class token_tree {
  public:
    // A character behind those of the nodes above it. Nodes stand in the order in which a walk
    // comes by them, and all that is below a node before its end.
    struct node {
        uint32_t character;
        uint32_t end;
        uint32_t first_token; // of those that end here, which end where the next node's begin
    };
    struct token {
        llama_token        id;
        llama_partial_utf8 rest; // a character that it begins and does not end
    };

    explicit token_tree(const llama_vocab * vocab);

    // The first one is the root, and its character none.
    const std::vector<node> & nodes() const { return nodes_; }
    const token * begin_of(uint32_t node) const { return tokens_.data() + nodes_[node].first_token; }
    const token * end_of(uint32_t node) const {
        return node + 1 < nodes_.size() ? begin_of(node + 1) : tokens_.data() + tokens_.size();
    }
    // The node below one whose character this is; 0 if there is none.
    uint32_t child(uint32_t node, uint32_t character) const;
    // Whether each byte of a character that is not ASCII has a token of its own.
    bool spells_bytes() const { return spells_bytes_; }
    // Those that end generation, whatever their text.
    const std::vector<llama_token> & end_tokens() const { return end_tokens_; }
    // Whether a grammar reads it otherwise than a text shows it (see text_tokens.hpp).
    bool    is_misread(llama_token token) const { return misread_[static_cast<size_t>(token)]; }
    uint8_t first_byte(llama_token token) const { return first_byte_[static_cast<size_t>(token)]; }
    llama_token                      n_tokens() const { return n_tokens_; }
    size_t                           longest_piece() const { return longest_piece_; } // in bytes

  private:
    struct spelling;
    void add(const spelling & next);

    std::vector<node>        nodes_;
    std::vector<token>       tokens_;
    std::vector<llama_token> end_tokens_;
    std::vector<bool>        misread_;
    std::vector<uint8_t>     first_byte_;
    std::unordered_map<uint32_t, uint32_t> first_; // nodes by the characters that tokens begin with
    bool                     spells_bytes_ = false;
    std::vector<uint32_t>    open_; // while it is made: the path to the last node
    llama_token              n_tokens_;
    size_t                   longest_piece_ = 0;
};

} // namespace pyllama
