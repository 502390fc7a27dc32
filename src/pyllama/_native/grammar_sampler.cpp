// While it waits for its trigger, a lazy grammar searches all text so far with std::regex, and
// libstdc++'s recurses for each character that a repetition takes: some ten thousand of them
// overflow an ordinary stack. Long texts are therefore searched on a thread with one that is
// deep enough.
#include "grammar_sampler.hpp"

#include "deep_stack.hpp"
#include "gbnf.hpp"
#include "grammar_budget.hpp"
#include "grammar_states.hpp"

#include "common/common.h"

#include <algorithm>
#include <cmath>
#include <optional>

namespace {

constexpr size_t MAX_FORCED = 1024; // bytes: a grammar can force a text without an end
constexpr size_t FEW        = 64;   // candidates that are as well tried one by one

struct grammar_deleter {
    void operator()(llama_grammar * grammar) const noexcept { llama_grammar_free_impl(grammar); }
};

using grammar_ptr = std::unique_ptr<llama_grammar, grammar_deleter>;

struct grammar_sampler {
    const llama_vocab *                        vocab;
    std::shared_ptr<const pyllama::token_tree> tokens;
    pyllama::grammar_source                    source;
    grammar_ptr                                grammar;
    size_t                                     n_bytes = 0; // accepted so far, if it is lazy
    std::unique_ptr<pyllama::grammar_states>   states{};    // once they are asked for
    uint32_t                                   n_tokens = 0; // to complete it in; 0 without bounds
    bool                                       ends_repetitions = false;
    std::unique_ptr<pyllama::grammar_budget>   budget{};

    const char *    name() const { return "grammar"; }
    void            accept(llama_token token);
    void            apply(llama_token_data_array * candidates);
    void            reset();
    grammar_sampler clone() const;
};

using kind = pyllama::sampler_kind<grammar_sampler>;

grammar_ptr begin(const llama_vocab * vocab, const pyllama::grammar_source & source) {
    std::vector<const char *> patterns;
    for (const std::string & pattern : source.patterns) {
        patterns.push_back(pattern.c_str());
    }
    const bool  lazy = !source.patterns.empty() || !source.tokens.empty();
    grammar_ptr grammar;
    pyllama::run_with_stack(pyllama::GRAMMAR_STACK, [&] {
        grammar.reset(llama_grammar_init_impl(vocab, source.gbnf.c_str(), source.root.c_str(), lazy,
                                              patterns.data(), patterns.size(),
                                              source.tokens.data(), source.tokens.size()));
    });
    return grammar;
}

void grammar_sampler::accept(llama_token token) {
    size_t stack = pyllama::GRAMMAR_STACK;
    if (source.stack_per_byte > 0) {
        n_bytes += common_token_to_piece(vocab, token).size();
        stack += n_bytes * source.stack_per_byte;
    }
    if (stack > pyllama::DEEPEST_STACK) {
        throw std::runtime_error("after " + std::to_string(n_bytes) +
                                 " bytes the text is too long for these trigger patterns");
    }
    if (budget) {
        budget->accepts(token);
    }
    pyllama::run_with_stack(stack, [&] { llama_grammar_accept_impl(*grammar, token); });
}

pyllama::grammar_states & states(grammar_sampler & own) {
    if (!own.states) {
        own.states = std::make_unique<pyllama::grammar_states>(own.tokens, *own.grammar);
    }
    return *own.states;
}

std::unique_ptr<pyllama::grammar_budget> make_budget(const grammar_sampler & own, uint32_t n_tokens) {
    std::unique_ptr<pyllama::grammar_budget> budget;
    pyllama::run_with_stack(4 * pyllama::GRAMMAR_STACK, [&] {
        budget = std::make_unique<pyllama::grammar_budget>(own.vocab, own.tokens, *own.grammar,
                                                           own.source.shown, n_tokens,
                                                           own.ends_repetitions);
    });
    return budget;
}

// What a grammar names as a token, it does not take for text.
void show_named(pyllama::text_tokens & shown, const llama_grammar & grammar) {
    for (const auto & rule : grammar.rules) {
        for (const llama_grammar_element & element : rule) {
            if (element.type == LLAMA_GRETYPE_TOKEN) {
                shown.show(static_cast<llama_token>(element.value));
            }
        }
    }
}

// Before the grammar looks at them: it has less to do then.
void rule_out_misread(const grammar_sampler & own, llama_token_data_array * candidates) {
    if (!own.source.shown || own.grammar->awaiting_trigger) {
        return;
    }
    for (size_t i = 0; i < candidates->size; i++) {
        const llama_token token = candidates->data[i].id;
        if (!own.source.shown->shows_behind(own.grammar->partial_utf8, token) &&
            !llama_vocab_is_eog(own.vocab, token)) {
            candidates->data[i].logit = -INFINITY;
        }
    }
}

void apply_here(grammar_sampler & own, llama_token_data_array * candidates) {
    rule_out_misread(own, candidates);
    const bool        many = candidates->size > FEW && !own.grammar->awaiting_trigger;
    const auto *      may  = many ? states(own).allowed() : nullptr;
    if (!may) {
        llama_grammar_apply_impl(*own.grammar, candidates);
        return;
    }
    for (size_t i = 0; i < candidates->size; i++) {
        if (!(*may)[static_cast<size_t>(candidates->data[i].id)]) {
            candidates->data[i].logit = -INFINITY;
        }
    }
}

void grammar_sampler::apply(llama_token_data_array * candidates) {
    pyllama::run_with_stack(pyllama::GRAMMAR_STACK, [&] { apply_here(*this, candidates); });
}

void grammar_sampler::reset() {
    states.reset();
    budget.reset();
    grammar = begin(vocab, source);
    n_bytes = 0;
    if (n_tokens > 0) {
        budget = make_budget(*this, n_tokens);
    }
}

grammar_sampler grammar_sampler::clone() const {
    grammar_sampler copy = {vocab, tokens, source, grammar_ptr(llama_grammar_clone_impl(*grammar)),
                            n_bytes};
    copy.n_tokens         = n_tokens;
    copy.ends_repetitions = ends_repetitions;
    if (budget) {
        pyllama::run_with_stack(4 * pyllama::GRAMMAR_STACK, [&] {
            copy.budget = std::make_unique<pyllama::grammar_budget>(*budget, *copy.grammar);
        });
    }
    return copy;
}

// The one character that may stand at a place, if there is only one.
std::optional<uint32_t> only_character(const llama_grammar_element * place) {
    if (place->type != LLAMA_GRETYPE_CHAR) {
        return std::nullopt;
    }
    const uint32_t only = place->value;
    for (const llama_grammar_element * next = place + 1;; next++) {
        const bool more = next->type == LLAMA_GRETYPE_CHAR_RNG_UPPER ||
                          next->type == LLAMA_GRETYPE_CHAR_ALT;
        if (!more) {
            return only;
        }
        if (next->value != only) {
            return std::nullopt;
        }
    }
}

std::optional<uint32_t> forced_character(const llama_grammar_stacks & stacks) {
    std::optional<uint32_t> forced;
    for (const llama_grammar_stack & stack : stacks) {
        const auto only = stack.empty() ? std::nullopt : only_character(stack.back());
        if (!only || (forced && forced != only)) {
            return std::nullopt;
        }
        forced = only;
    }
    return forced;
}

void append_utf8(std::string & text, uint32_t c) {
    const auto add = [&](uint32_t byte) { text += static_cast<char>(byte); };
    if (c < 0x80) {
        add(c);
        return;
    }
    const int n_more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    add((0xF00U >> (n_more + 1) & 0xFF) | c >> (6 * n_more));
    for (int i = n_more - 1; i >= 0; i--) {
        add(0x80 | (c >> (6 * i) & 0x3F));
    }
}

// For each place a line with the names of its rules.
std::string names_of(const grammar_sampler & own, const std::set<std::set<uint32_t>> & places) {
    if (places.empty()) {
        return "";
    }
    llama_grammar_parser parser(own.vocab);
    std::string          text;
    pyllama::run_with_stack(pyllama::GRAMMAR_STACK, [&] { parser.parse(own.source.gbnf.c_str()); });
    for (const std::set<uint32_t> & place : places) {
        for (const auto & [name, rule] : parser.symbol_ids) {
            if (place.count(rule) > 0) {
                text += name + " ";
            }
        }
        text += "\n";
    }
    return text;
}

bool is_character(uint32_t c) {
    return c > 0 && c < 0x110000 && (c < 0xD800 || c > 0xDFFF);
}

} // namespace

namespace pyllama {

bool is_grammar(const llama_sampler * sampler) {
    return kind::has(sampler);
}

sampler_ptr make_grammar_sampler(const llama_vocab * vocab, std::shared_ptr<const token_tree> tokens,
                                 grammar_source source) {
    grammar_ptr grammar = begin(vocab, source);
    if (grammar && source.shown) {
        show_named(*source.shown, *grammar);
    }
    if (!grammar) {
        return nullptr;
    }
    return sampler_ptr(kind::make(
        grammar_sampler{vocab, std::move(tokens), std::move(source), std::move(grammar)}));
}

void complete_within(llama_sampler * sampler, uint32_t n_tokens, bool ends_repetitions) {
    grammar_sampler & own = kind::state(sampler);
    own.budget.reset();
    own.n_tokens         = n_tokens;
    own.ends_repetitions = ends_repetitions;
    if (n_tokens > 0) {
        own.budget = make_budget(own, n_tokens);
    }
}

bool budget_allows(llama_sampler * sampler, llama_token token) {
    if (!is_grammar(sampler)) {
        return true;
    }
    grammar_sampler & own = kind::state(sampler);
    return !own.budget || own.budget->allows(token);
}

void restrict_to_budget(llama_sampler * sampler, llama_token_data_array * candidates) {
    grammar_sampler & own = kind::state(sampler);
    own.budget->restrict(candidates, states(own));
}

bool budget_fits(llama_sampler * sampler, const std::vector<llama_token> & tokens) {
    grammar_sampler & own = kind::state(sampler);
    return !own.budget || own.budget->fits(tokens);
}

int64_t fewest_tokens(llama_sampler * sampler) {
    grammar_sampler & own    = kind::state(sampler);
    const auto        budget = own.budget ? nullptr : make_budget(own, 0);
    const uint32_t    fewest = (own.budget ? own.budget : budget)->fewest();
    return fewest == grammar_budget::ENDLESS ? -1 : static_cast<int64_t>(fewest);
}

bool was_bounded(llama_sampler * sampler) {
    const auto & budget = kind::state(sampler).budget;
    return budget && !(budget->places().empty() && budget->repeated().empty());
}

std::string shortened_places(llama_sampler * sampler, bool here) {
    grammar_sampler & own = kind::state(sampler);
    if (!own.budget) {
        return "";
    }
    std::set<std::set<uint32_t>> places = own.budget->places();
    if (here) {
        places.insert(own.budget->here());
    }
    return names_of(own, places);
}

std::string repeated_places(llama_sampler * sampler) {
    const grammar_sampler & own = kind::state(sampler);
    return own.budget ? names_of(own, own.budget->repeated()) : "";
}

text_end end_of(const llama_sampler * sampler) {
    const llama_grammar & grammar = *kind::state(sampler).grammar;
    if (grammar.awaiting_trigger || grammar.partial_utf8.n_remain > 0) {
        return text_end::GOES_ON;
    }
    const auto & stacks = grammar.stacks;
    const auto   empty  = [](const llama_grammar_stack & stack) { return stack.empty(); };
    if (std::all_of(stacks.begin(), stacks.end(), empty)) {
        return text_end::ENDS;
    }
    return std::any_of(stacks.begin(), stacks.end(), empty) ? text_end::MAY_END : text_end::GOES_ON;
}

std::string forced_text(const llama_sampler * sampler) {
    llama_grammar & grammar = *kind::state(sampler).grammar;
    std::string     text;
    // Of a character that is written by halves, the rest is no text.
    if (grammar.awaiting_trigger || grammar.partial_utf8.n_remain > 0) {
        return text;
    }
    const restored_stacks restored(grammar);
    while (text.size() < MAX_FORCED) {
        const auto forced = forced_character(grammar.stacks);
        if (!forced || !is_character(*forced)) {
            break;
        }
        append_utf8(text, *forced);
        run_with_stack(GRAMMAR_STACK, [&] { llama_grammar_accept(&grammar, *forced); });
    }
    return text;
}

} // namespace pyllama
