// Which tokens of a whole vocabulary a grammar allows.
//
// llama.cpp tries every token on its own, for milliseconds. Here the tree of the vocabulary is
// walked: a branch whose first character the grammar refuses is left out whole, and a state that
// was met before is known again with its answers. The steps from state to state are llama.cpp's.
#pragma once

#include "token_tree.hpp"

#include <functional>
#include <map>
#include <memory>

namespace pyllama {

class grammar_states {
  public:
    // For one grammar, whose rules do not move.
    grammar_states(std::shared_ptr<const token_tree> tokens, llama_grammar & grammar);
    ~grammar_states();
    grammar_states(const grammar_states &) = delete;
    grammar_states & operator=(const grammar_states &) = delete;

    // By token, whether it may come next: exactly what llama_grammar_apply_impl leaves. Null where
    // that must be asked: within a character, and for grammars that take tokens for themselves or
    // that branch too much. What it returns is good until the next call.
    const std::vector<bool> * allowed();

    // Visits each token that may come next, but those that end generation, with the stacks behind
    // its last whole character and what it begins of another. The stacks stay where they are until
    // the next call. False where that is not known, after no or some of them.
    using visitor =
        std::function<void(llama_token, const llama_grammar_stacks &, llama_partial_utf8)>;
    bool each(const visitor & visit);

  private:
    struct state;

    using state_map = std::map<llama_grammar_stacks, std::unique_ptr<state>>;

    void              clear();
    state *           at(const llama_grammar_stacks & stacks);
    state *           step(state & from, uint32_t character);
    state *           behind(state & from, uint32_t character);
    void              walk(state & from, const visitor & visit);
    std::vector<bool> tokens_of(state & from);
    bool              at_present(const std::function<void(state &)> & what);

    std::shared_ptr<const token_tree> tokens_;
    llama_grammar &                   grammar_;
    bool                              takes_tokens_;
    state_map                         states_;
    size_t                            n_kept_ = 0; // states whose tokens are known
};

// Puts a grammar back to where it was.
class restored_stacks {
  public:
    explicit restored_stacks(llama_grammar & grammar) : grammar_(grammar), stacks_(grammar.stacks) {}
    ~restored_stacks() { grammar_.stacks = std::move(stacks_); }
    restored_stacks(const restored_stacks &) = delete;
    restored_stacks & operator=(const restored_stacks &) = delete;

  private:
    llama_grammar &      grammar_;
    llama_grammar_stacks stacks_;
};

// Puts a grammar back to where it was, within a character too.
class restored_place {
  public:
    explicit restored_place(llama_grammar & grammar)
        : grammar_(grammar), stacks_(grammar), rest_(grammar.partial_utf8) {}
    ~restored_place() { grammar_.partial_utf8 = rest_; }
    restored_place(const restored_place &) = delete;
    restored_place & operator=(const restored_place &) = delete;

  private:
    llama_grammar &    grammar_;
    restored_stacks    stacks_;
    llama_partial_utf8 rest_;
};

} // namespace pyllama
