// Completing what a grammar describes within a number of tokens.
//
// The fewest tokens that complete a text are kept in reserve: no token may come next after which
// the shortest way to the end would not fit. Before that, what follows is given room for values of
// a useful length, and a text that runs on is ended at a sentence, a line or a word, where one
// comes in time. What is allowed depends on the text so far and the number of tokens alone.
//
// A line of text that repeats itself can be ended early as well.
#pragma once

#include "grammar_lengths.hpp"
#include "grammar_states.hpp"
#include "repetition.hpp"
#include "text_tokens.hpp"
#include "token_tree.hpp"

#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

namespace pyllama {

class grammar_budget {
  public:
    // shown: the tokens that may spell the text; null for all. The rules do not move.
    grammar_budget(const llama_vocab * vocab, std::shared_ptr<const token_tree> tokens,
                   llama_grammar & grammar, std::shared_ptr<const text_tokens> shown,
                   uint32_t n_tokens, bool ends_repetitions);

    // The same of a copy of the grammar.
    grammar_budget(const grammar_budget & from, llama_grammar & grammar);
    grammar_budget & operator=(const grammar_budget &) = delete;

    static constexpr uint32_t ENDLESS = grammar_lengths::ENDLESS;

    // Tokens that complete it from here on, by the shortest way; ENDLESS where that is not known.
    uint32_t fewest();

    // Whether these tokens may come next, none of which ends the text, and it can be completed
    // behind them.
    bool fits(const std::vector<llama_token> & tokens);

    // Whether a token may come next that the grammar allows. If not, the place is noted.
    bool allows(llama_token token);

    // Rules out what is not allowed of candidates that the grammar has been applied to. Something
    // is always left: where nothing would be, there are no bounds any more.
    void restrict(llama_token_data_array * candidates, grammar_states & states);

    // Takes note of a token, before the grammar takes it.
    void accepts(llama_token token);

    // The rules that a place is in where a token was not allowed, each place once.
    const std::set<std::set<uint32_t>> & places() const { return places_; }
    // The same for texts that were ended because they repeated themselves.
    const std::set<std::set<uint32_t>> & repeated() const { return repeated_; }
    // Those of the present place.
    std::set<uint32_t> here() const;

  private:
    struct need {
        uint32_t tokens; // at least
        uint32_t bytes;  // of the shortest text
        uint32_t extra;  // tokens that values take beyond their shortest
    };

    bool     waits() const { return grammar_.awaiting_trigger; }
    bool     begins();
    uint32_t shared(const need & now) const;
    bool     is_far(size_t n_bytes) const;
    bool     may_follow(const need & now, const need & after, llama_token token) const;
    need     needed(const llama_grammar_stacks & stacks, llama_partial_utf8 rest);
    need     needed_after(llama_token token);
    uint32_t spelled(const std::string & text);
    bool     is_text() const;
    bool     may_be_text() const;
    bool     is_repeated();
    bool     repeats_line() const;
    bool     way_out();
    void     note(llama_token token, std::set<std::set<uint32_t>> & places) const;
    void     add_rules(std::set<uint32_t> & rules, const llama_grammar_stack & stack) const;

    std::string piece(llama_token token) const;

    const llama_vocab *               vocab_;
    std::shared_ptr<const token_tree> tokens_;
    llama_grammar &                   grammar_;
    grammar_lengths                   lengths_;
    const std::shared_ptr<const text_tokens> shown_;
    uint32_t                          n_left_;
    bool                              begun_   = false; // a lazy grammar begins with its trigger
    bool                              unbound_ = false;
    // Set when it begins: by how little there is to give.
    uint32_t planned_ = 0; // extra tokens of which a share is kept
    uint32_t share_   = 0; // of the extra tokens that are kept, in 256ths
    uint32_t window_  = 0; // tokens before the end of a text in which it may end with a sentence
    uint32_t word_    = 0; // those in which no word may begin
    uint32_t opening_ = 0; // tokens beyond the shortest value that another item has room for
    bool     ends_word_ = false; // a word was refused for which no room is left
    uint32_t n_written_ = 0; // tokens of the text that is being written
    std::string                               last_; // bytes of the text so far
    std::unordered_map<std::string, uint32_t> spelled_;
    std::set<std::set<uint32_t>>              places_;
    bool       ends_repetitions_;
    repetition written_;
    bool       repeats_ = false; // only the shortest way out of the text is allowed
    uint32_t   outside_ = 0;     // bytes of the shortest text behind it
    std::set<std::set<uint32_t>> repeated_;
};

} // namespace pyllama
