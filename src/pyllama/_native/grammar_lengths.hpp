// How much text a grammar still asks for, at the least, from any place in it on.
#pragma once

#include "prelude.h"

#include "src/llama-grammar.h"

#include <string>
#include <utility>
#include <vector>

namespace pyllama {

// Whether the characters of a place hold this one.
bool holds(const llama_grammar_element * place, uint32_t character);

// The characters of a text in UTF-8.
std::u32string characters_of(const std::string & text);

// Of the rules of one grammar, which do not move: the shortest text of each, and what may usefully
// be added to it. Of texts of the same length one is chosen by the order of their bytes alone, so
// that what is left of a shortest text is the shortest text of what is left of the grammar.
class grammar_lengths {
  public:
    explicit grammar_lengths(const llama_grammar_rules & rules);

    // Of a place, up to the end of its stack or its sequence.
    struct need {
        uint32_t least; // bytes, or ENDLESS
        uint32_t extra; // tokens that values take beyond their shortest, as a rule
    };

    static constexpr uint32_t ENDLESS = UINT32_MAX;

    // False for grammars that name tokens, and for those whose shortest texts are too long to keep.
    bool known() const { return known_; }

    need of(const llama_grammar_stack & stack) const;

    // The shortest text from here on, and what it is likely to take more; nothing if there is none.
    struct rest {
        std::string text;
        uint32_t    extra;
    };
    rest shortest(const llama_grammar_stacks & stacks) const;
    bool ends(const llama_grammar_stacks & stacks) const; // whether any text from here on does

    // How many bytes and tokens a need can grow by, at the most, with each character.
    uint32_t growth() const { return growth_; }

    // The rule that a place is in.
    uint32_t rule_of(const llama_grammar_element * place) const;

  private:
    struct rule {
        bool        found = false; // whether its shortest text is known
        std::string text;
        uint32_t    extra = 0; // bytes
    };

    const need & tail(const llama_grammar_element * place) const;
    std::string  text(const llama_grammar_stack & stack) const;
    void         append(std::string & text, const llama_grammar_element * place) const;
    bool         find_texts();
    void         find_extras();
    void         find_tails();
    void         find_growth();
    uint32_t     extra_of(const llama_grammar_element * place) const;

    using alternative = std::pair<uint32_t, const llama_grammar_element *>; // with its rule
    std::vector<alternative> alternatives() const;

    const llama_grammar_rules &                                     rules_;
    bool                                                            known_ = false;
    uint32_t                                                        growth_ = 0;
    std::vector<rule>                                               found_;
    std::vector<std::pair<const llama_grammar_element *, uint32_t>> begins_; // by address
    std::vector<std::vector<need>>                                  tails_;  // by rule and place
};

} // namespace pyllama
