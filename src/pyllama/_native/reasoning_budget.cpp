// llama.cpp's reasoning budget looks for tags as sequences of tokens. Under a grammar a tag can be
// spelled by other tokens, and can have been begun when the budget is spent. So the text is followed
// here as well: a tag is known however it is spelled, and one that was begun is completed.
#include "sampler.hpp"

#include "common/common.h"
#include "common/reasoning-budget.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

namespace {

struct tag {
    llama_tokens tokens;
    std::string  text;
};

struct reasoning_budget {
    const llama_vocab *  vocab;
    tag                  start;
    std::vector<tag>     ends;
    tag                  forced;
    bool                 once;        // whether only what begins the text is reasoning
    pyllama::sampler_ptr counter{};   // llama.cpp's
    bool                 over = false; // nothing that follows is reasoning
    std::string          last{};      // bytes of the text, as many as a tag has
    // While the end is forced:
    std::string          rest{};            // of its text
    bool                 is_spelled = true; // by its own tokens so far
    size_t               n_forced   = 0;    // of these

    const char *     name() const { return llama_sampler_name(counter.get()); }
    void             accept(llama_token token);
    void             apply(llama_token_data_array * candidates);
    void             reset();
    reasoning_budget clone() const;
};

common_reasoning_budget_state state_of(const reasoning_budget & own) {
    return common_reasoning_budget_get_state(own.counter.get());
}

bool is_forcing(const reasoning_budget & own) {
    return state_of(own) == REASONING_BUDGET_FORCING;
}

bool is_counting(const reasoning_budget & own) {
    return state_of(own) == REASONING_BUDGET_COUNTING ||
           state_of(own) == REASONING_BUDGET_WAITING_UTF8;
}

tag make_tag(const llama_vocab * vocab, llama_tokens tokens) {
    std::string text;
    for (const llama_token token : tokens) {
        text += common_token_to_piece(vocab, token);
    }
    return {std::move(tokens), std::move(text)};
}

bool begins_with(const std::string & text, const std::string & begin) {
    return text.compare(0, begin.size(), begin) == 0;
}

bool ends_with(const std::string & text, const std::string & end) {
    return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

void tell(const reasoning_budget & own, const tag & told) {
    for (const llama_token token : told.tokens) {
        llama_sampler_accept(own.counter.get(), token);
    }
}

// Whether the text so far is space and a part of the start.
bool may_begin(const reasoning_budget & own) {
    const size_t begin = own.last.find_first_not_of(" \n\t");
    return begin == std::string::npos || begins_with(own.start.text, own.last.substr(begin));
}

// The end stands in the text: the counter is told so in the tokens that it looks for.
void end(reasoning_budget & own) {
    if (is_counting(own)) {
        tell(own, own.ends.front());
    }
    if (is_forcing(own)) {
        tell(own, own.forced);
    }
    own.over = own.once;
    own.last.clear();
}

// What is left of the end to force, where the text ends with a part of it.
void begin_forcing(reasoning_budget & own) {
    const std::string & whole = own.forced.text;
    size_t              begun = whole.empty() ? 0 : whole.size() - 1;
    while (!ends_with(own.last, whole.substr(0, begun))) {
        begun--;
    }
    own.rest       = whole.substr(begun);
    own.is_spelled = begun == 0;
    own.n_forced   = 0;
}

// Follows the text, whose tags the counter does not see where other tokens spell them.
void follow(reasoning_budget & own, common_reasoning_budget_state before, const std::string & text) {
    if (state_of(own) == REASONING_BUDGET_DONE) {
        own.over = own.once;
        own.last.clear();
        return;
    }
    const bool was_idle = before == REASONING_BUDGET_IDLE || before == REASONING_BUDGET_DONE;
    if (was_idle && state_of(own) != REASONING_BUDGET_IDLE) { // it has seen the start
        own.last.clear();
        return;
    }
    own.last += text;
    if (was_idle) {
        if (!own.start.text.empty() && ends_with(own.last, own.start.text)) {
            tell(own, own.start);
            own.last.clear();
            return;
        }
        own.over = own.once && !may_begin(own);
    } else if (std::any_of(own.ends.begin(), own.ends.end(), [&](const tag & one) {
                   return !one.text.empty() && own.last.find(one.text) != std::string::npos;
               })) {
        end(own);
    }
    size_t longest = std::max(own.start.text.size(), own.forced.text.size());
    for (const tag & one : own.ends) {
        longest = std::max(longest, one.text.size());
    }
    if (own.last.size() > longest) {
        own.last.erase(0, own.last.size() - longest);
    }
}

void force(reasoning_budget & own, llama_token token, const std::string & text) {
    own.is_spelled = own.is_spelled && own.n_forced < own.forced.tokens.size() &&
                     token == own.forced.tokens[own.n_forced];
    own.n_forced++;
    const bool is_whole = own.is_spelled ? own.n_forced == own.forced.tokens.size()
                                         : begins_with(text, own.rest);
    if (is_whole) {
        end(own);
    } else if (begins_with(own.rest, text)) {
        own.rest.erase(0, text.size());
    } else { // it could not come here, see below
        end(own);
    }
}

void reasoning_budget::accept(llama_token token) {
    if (over) {
        return;
    }
    const std::string text = common_token_to_piece(vocab, token);
    if (is_forcing(*this)) {
        force(*this, token, text);
    } else {
        const auto before = state_of(*this);
        llama_sampler_accept(counter.get(), token);
        follow(*this, before, text);
        if (is_forcing(*this)) {
            begin_forcing(*this);
        }
    }
}

// Leaves the next of the end's tokens, or, where that one cannot be chosen or the end was begun with
// others, those that go on with its text. Where none can, because a grammar has no end of reasoning
// here, what began it was none.
void reasoning_budget::apply(llama_token_data_array * candidates) {
    if (!is_forcing(*this)) {
        return;
    }
    llama_token_data * const last = candidates->data + candidates->size;
    const bool by_token     = is_spelled && n_forced < forced.tokens.size();
    const auto next         = by_token ? forced.tokens[n_forced] : LLAMA_TOKEN_NULL;
    const auto found        = std::find_if(candidates->data, last, [&](const llama_token_data & one) {
        return one.id == next;
    });
    const bool by_text      = !by_token || (found != last && found->logit == -INFINITY);
    const auto goes_on      = [&](const llama_token_data & one) {
        if (!by_text) {
            return one.id == next;
        }
        const std::string text = one.logit == -INFINITY ? "" : common_token_to_piece(vocab, one.id);
        return !text.empty() && (begins_with(rest, text) || begins_with(text, rest));
    };
    if (by_text && std::none_of(candidates->data, last, goes_on)) {
        return;
    }
    for (llama_token_data * one = candidates->data; one != last; one++) {
        if (!goes_on(*one)) {
            one->logit = -INFINITY;
        }
    }
}

void reasoning_budget::reset() {
    llama_sampler_reset(counter.get());
    over = false;
    last.clear();
}

reasoning_budget reasoning_budget::clone() const {
    return {vocab, start, ends, forced, once, pyllama::clone_sampler(counter.get()), over, last,
            rest, is_spelled, n_forced};
}

} // namespace

extern "C" {

// The end sequences stand one after the other in ends, n_ends of them, as long as end_sizes says.
llama_sampler * guarded_sampler_init_reasoning_budget(const llama_vocab * vocab,
                                                      const llama_token * start, size_t n_start,
                                                      const llama_token * ends,
                                                      const size_t * end_sizes, size_t n_ends,
                                                      const llama_token * forced, size_t n_forced,
                                                      int32_t budget, bool counting,
                                                      bool once) {
    return pyllama::guarded_init([&] {
        reasoning_budget state = {vocab, make_tag(vocab, {start, start + n_start}), {},
                                  make_tag(vocab, {forced, forced + n_forced}), once};
        std::vector<llama_tokens> end_seqs;
        for (size_t i = 0; i < n_ends; ++i) {
            end_seqs.emplace_back(ends, ends + end_sizes[i]);
            state.ends.push_back(make_tag(vocab, end_seqs.back()));
            ends += end_sizes[i];
        }
        state.counter.reset(common_reasoning_budget_init(
            vocab, {state.start.tokens}, end_seqs, state.forced.tokens, budget,
            counting ? REASONING_BUDGET_COUNTING : REASONING_BUDGET_IDLE));
        if (is_forcing(state)) {
            begin_forcing(state);
        }
        return pyllama::sampler_kind<reasoning_budget>::make(std::move(state));
    });
}

} // extern "C"
