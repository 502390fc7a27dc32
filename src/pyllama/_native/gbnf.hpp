// GBNF as llama.cpp's own parser reads it, and whether llama.cpp survives the grammar.
//
// llama.h gives no reason why a grammar is refused, nor what a grammar expects next. This one private
// header of libllama does; the choice was between it and a second parser.
#pragma once

#include "prelude.h"

#include "src/llama-grammar.h"

#include <stdexcept>
#include <string>

namespace pyllama {

// What is wrong with a grammar, in words for its author.
struct gbnf_error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Throws gbnf_error. Without a vocabulary, tokens that are named by their text are not looked up.
llama_grammar_parser parse_gbnf(std::string source, const llama_vocab * vocab);

// Throws gbnf_error for rules on which llama.cpp would run out of stack, memory or time.
void check_gbnf(const llama_grammar_parser & grammar);

// Throws gbnf_error where no text but the empty one can come of a rule.
void check_root(const llama_grammar_parser & grammar, uint32_t root);

} // namespace pyllama
