// The sampler that holds to a grammar. It does what llama.cpp's own does, by the same functions,
// and can be asked more than a sampler can.
#pragma once

#include "sampler.hpp"
#include "text_tokens.hpp"
#include "token_tree.hpp"

#include <string>
#include <vector>

namespace pyllama {

// A grammar that begins with one of its triggers, or at once without any.
struct grammar_source {
    std::string              gbnf;
    std::string              root;
    std::vector<std::string> patterns;
    std::vector<llama_token> tokens;
    std::shared_ptr<text_tokens> shown; // without it, whatever the grammar takes may come
    size_t stack_per_byte; // what its patterns need, at most, for a byte of the text they search
};

// Null for what llama.cpp does not take, which is logged then.
sampler_ptr make_grammar_sampler(const llama_vocab * vocab, std::shared_ptr<const token_tree> tokens,
                                 grammar_source source);

// Text that any way to go on begins with; empty where there are several, or the text may end.
std::string forced_text(const llama_sampler * grammar);

// Completing a grammar within this number of tokens from here on; 0 takes the bounds away.
void complete_within(llama_sampler * grammar, uint32_t n_tokens, bool ends_repetitions);

// Whether it can be completed within its bounds after tokens that the grammar allows.
bool budget_fits(llama_sampler * grammar, const std::vector<llama_token> & tokens);

// Tokens that complete it from here on, by the shortest way; -1 where that is not known.
int64_t fewest_tokens(llama_sampler * grammar);

// Whether its bounds ruled a token out anywhere, or ended a text that repeated itself.
bool was_bounded(llama_sampler * grammar);

// Where its bounds ruled a token out, and where it is now if asked: for each place a line with the
// names of the rules that it is in.
std::string shortened_places(llama_sampler * grammar, bool here);

// The places where a text was ended because it repeated itself.
std::string repeated_places(llama_sampler * grammar);

enum class text_end { GOES_ON, MAY_END, ENDS }; // the last where nothing may follow

text_end end_of(const llama_sampler * grammar);

} // namespace pyllama
