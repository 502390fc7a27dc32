#include "deep_stack.hpp"
#include "forced_tokens.hpp"
#include "gbnf.hpp"
#include "grammar_sampler.hpp"

#include <algorithm>
#include <cmath>
#include <regex>

using pyllama::guarded;
using pyllama::guarded_init;

// The tokens of a vocabulary, in the form in which grammars look at all of them.
struct pyllama_tokens {
    std::shared_ptr<const pyllama::token_tree> tree;
};

namespace {

void check(const llama_vocab * vocab, const char * source, const char * root) {
    const llama_grammar_parser grammar = pyllama::parse_gbnf(source, vocab);
    const auto                 found   = grammar.symbol_ids.find(root);
    if (found == grammar.symbol_ids.end()) {
        throw pyllama::gbnf_error(std::string("there is no rule '") + root + "' to begin with");
    }
    pyllama::check_gbnf(grammar);
    pyllama::check_root(grammar, found->second);
}

} // namespace

extern "C" {

// What is wrong with a grammar, or an empty text.
char * guarded_grammar_check(const llama_vocab * vocab, const char * source, const char * root) {
    return guarded<char *>(nullptr, [&] {
        std::string problem;
        try {
            pyllama::run_with_stack(pyllama::GRAMMAR_STACK, [&] { check(vocab, source, root); });
        } catch (const pyllama::gbnf_error & error) {
            problem = error.what();
        }
        return pyllama::copy_string(problem);
    });
}

// What is wrong with a regular expression, or an empty text.
char * guarded_grammar_check_pattern(const char * pattern) {
    return guarded<char *>(nullptr, [&] {
        std::string problem;
        try {
            pyllama::run_with_stack(pyllama::GRAMMAR_STACK, [&] { const std::regex regex(pattern); });
        } catch (const std::regex_error & error) {
            problem = error.what();
        }
        return pyllama::copy_string(problem);
    });
}

// Without patterns and tokens it holds at once; stack_per_byte: see grammar_sampler.hpp. shown: the
// tokens whose names a text shows, or NULL where it takes whatever the grammar does.
llama_sampler * guarded_sampler_init_grammar(const llama_vocab * vocab, const pyllama_tokens * all,
                                             const char * source, const char * root,
                                             const char ** patterns, size_t n_patterns,
                                             const llama_token * tokens, size_t n_tokens,
                                             const llama_token * shown, size_t n_shown,
                                             size_t stack_per_byte) {
    return guarded_init([&] {
        const auto text = shown == nullptr ? nullptr
                                           : std::make_shared<pyllama::text_tokens>(
                                                 all->tree, std::vector(shown, shown + n_shown));
        return pyllama::make_grammar_sampler(vocab, all->tree,
                                             {source,
                                              root,
                                              {patterns, patterns + n_patterns},
                                              {tokens, tokens + n_tokens},
                                              text,
                                              stack_per_byte})
            .release();
    });
}

// Which of the tokens may come next.
int32_t guarded_grammar_allowed(llama_sampler * grammar, const llama_token * tokens,
                                size_t n_tokens, bool * allowed) {
    return guarded([&] {
        std::vector<llama_token_data> data(n_tokens);
        for (size_t i = 0; i < n_tokens; i++) {
            data[i] = {tokens[i], 0.0f, 0.0f};
        }
        llama_token_data_array candidates = {data.data(), n_tokens, -1, false};
        llama_sampler_apply(grammar, &candidates);
        for (size_t i = 0; i < n_tokens; i++) {
            allowed[i] = data[i].logit != -INFINITY;
        }
    });
}

char * guarded_grammar_forced_text(const llama_sampler * grammar) {
    return guarded<char *>(nullptr,
                           [&] { return pyllama::copy_string(pyllama::forced_text(grammar)); });
}

// Room for as many tokens as forcing.most; returns how many there are.
int32_t guarded_grammar_forced_tokens(llama_sampler * grammar, const llama_vocab * vocab,
                                      const pyllama_forcing * forcing, llama_token * tokens) {
    return guarded(PYLLAMA_CAUGHT, [&] {
        const auto forced = pyllama::forced_tokens(grammar, vocab, *forcing);
        std::copy(forced.begin(), forced.end(), tokens);
        return static_cast<int32_t>(forced.size());
    });
}

int32_t guarded_grammar_complete_within(llama_sampler * grammar, uint32_t n_tokens,
                                        bool ends_repetitions) {
    return guarded([&] { pyllama::complete_within(grammar, n_tokens, ends_repetitions); });
}

// 1 or 0.
int32_t guarded_grammar_fits(llama_sampler * grammar, const llama_token * tokens, size_t n_tokens) {
    return guarded(PYLLAMA_CAUGHT, [&]() -> int32_t {
        return pyllama::budget_fits(grammar, {tokens, tokens + n_tokens});
    });
}

int32_t guarded_grammar_fewest_tokens(llama_sampler * grammar, int64_t * n_tokens) {
    return guarded([&] { *n_tokens = pyllama::fewest_tokens(grammar); });
}

char * guarded_grammar_shortened(llama_sampler * grammar, bool here) {
    return guarded<char *>(
        nullptr, [&] { return pyllama::copy_string(pyllama::shortened_places(grammar, here)); });
}

char * guarded_grammar_repeated(llama_sampler * grammar) {
    return guarded<char *>(nullptr,
                           [&] { return pyllama::copy_string(pyllama::repeated_places(grammar)); });
}

// Whether the text may end: 0 for no, 1 for yes, 2 where nothing may follow.
int32_t guarded_grammar_ending(const llama_sampler * grammar) {
    return guarded(PYLLAMA_CAUGHT, [&] { return static_cast<int32_t>(pyllama::end_of(grammar)); });
}

// A token that ends generation, or LLAMA_TOKEN_NULL.
int32_t guarded_grammar_eog(const llama_vocab * vocab) {
    return guarded(PYLLAMA_CAUGHT, [&]() -> int32_t {
        for (llama_token token = 0; token < llama_vocab_n_tokens(vocab); token++) {
            if (llama_vocab_is_eog(vocab, token)) {
                return token;
            }
        }
        return LLAMA_TOKEN_NULL;
    });
}

pyllama_tokens * guarded_tokens_init(const llama_vocab * vocab) {
    return guarded<pyllama_tokens *>(nullptr, [&] {
        return new pyllama_tokens{std::make_shared<pyllama::token_tree>(vocab)};
    });
}

int32_t guarded_tokens_free(pyllama_tokens * tokens) {
    return guarded([&] { delete tokens; });
}

// In bytes: llama.cpp recurses once for each character of a token.
size_t guarded_tokens_longest(const pyllama_tokens * tokens) {
    return tokens->tree->longest_piece();
}

} // extern "C"
