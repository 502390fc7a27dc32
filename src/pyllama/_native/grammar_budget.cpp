#include "grammar_budget.hpp"

#include "deep_stack.hpp"

#include "common/common.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>

namespace pyllama {

namespace {

constexpr size_t   KEPT_TEXTS  = 4096;
constexpr size_t   KEPT_PLACES = 64;
constexpr size_t   LOOKED_BACK = 64; // bytes of the text
constexpr uint32_t MOST_SHARED   = 256;
constexpr uint32_t SHORTEST_TEXT = 4; // tokens

uint32_t sum(uint32_t a, uint32_t b) {
    return a == grammar_budget::ENDLESS || b == grammar_budget::ENDLESS ? grammar_budget::ENDLESS
                                                                        : a + b;
}

bool ends_with(const std::string & text, const std::string & end) {
    return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

bool is_space(char c) {
    return c == ' ' || c == '\n' || c == '\t';
}

// Whether a text ends with a line or a sentence. The full stop of a number, of a letter that stands
// for a word, or of an item's number ends none.
bool ends_sentence(std::string text) {
    if (ends_with(text, "\n")) {
        return true;
    }
    while (!text.empty() && (is_space(text.back()) || text.back() == '"' || text.back() == '\'' ||
                             text.back() == ')' || text.back() == '*')) {
        text.pop_back();
    }
    for (const char * end : {"!", "?", "\u3002", "\uFF01", "\uFF1F", "\u2026"}) {
        if (ends_with(text, end)) {
            return true;
        }
    }
    if (!ends_with(text, ".")) {
        return false;
    }
    size_t n_letters = 0;
    for (size_t i = text.size() - 1; i > 0 && !is_space(text[i - 1]); i--) {
        n_letters += text[i - 1] < '0' || text[i - 1] > '9';
    }
    return n_letters > 1;
}

} // namespace

grammar_budget::grammar_budget(const llama_vocab * vocab, std::shared_ptr<const token_tree> tokens,
                               llama_grammar & grammar, std::shared_ptr<const text_tokens> shown,
                               uint32_t n_tokens, bool ends_repetitions)
    : vocab_(vocab), tokens_(std::move(tokens)), grammar_(grammar), lengths_(grammar.rules),
      shown_(std::move(shown)), n_left_(n_tokens), unbound_(!lengths_.known()),
      ends_repetitions_(ends_repetitions) {}

grammar_budget::grammar_budget(const grammar_budget & from, llama_grammar & grammar)
    : vocab_(from.vocab_), tokens_(from.tokens_), grammar_(grammar), lengths_(grammar.rules),
      shown_(from.shown_), n_left_(from.n_left_), begun_(from.begun_), unbound_(from.unbound_),
      planned_(from.planned_), share_(from.share_), window_(from.window_), word_(from.word_),
      opening_(from.opening_),
      n_written_(from.n_written_), last_(from.last_), places_(from.places_),
      ends_repetitions_(from.ends_repetitions_), written_(from.written_), repeats_(from.repeats_),
      outside_(from.outside_), repeated_(from.repeated_) {}

uint32_t grammar_budget::fewest() {
    if (!lengths_.known() || waits()) {
        return ENDLESS;
    }
    return needed(grammar_.stacks, grammar_.partial_utf8).tokens;
}

bool grammar_budget::fits(const std::vector<llama_token> & tokens) {
    if (!begins()) {
        return true;
    }
    const restored_place restored(grammar_);
    bool                 follow = true;
    run_with_stack(GRAMMAR_STACK, [&] {
        for (size_t i = 0; i < tokens.size() && follow; i++) {
            llama_token_data       only       = {tokens[i], 0.0f, 0.0f};
            llama_token_data_array candidates = {&only, 1, -1, false};
            llama_grammar_apply_impl(grammar_, &candidates);
            follow = only.logit != -INFINITY && !llama_vocab_is_eog(vocab_, tokens[i]) &&
                     (!shown_ || shown_->shows_behind(grammar_.partial_utf8, tokens[i]));
            if (follow) {
                llama_grammar_accept_impl(grammar_, tokens[i]);
            }
        }
    });
    if (!follow) {
        return false;
    }
    const uint32_t fewest = needed(grammar_.stacks, grammar_.partial_utf8).tokens;
    return tokens.size() <= n_left_ && fewest <= n_left_ - tokens.size();
}

bool grammar_budget::allows(llama_token token) {
    ends_word_ = false;
    if (!begins() || llama_vocab_is_eog(vocab_, token)) {
        return true;
    }
    const bool repeats = is_repeated();
    if (!repeats && is_far(piece(token).size())) {
        return true;
    }
    const need now = needed(grammar_.stacks, grammar_.partial_utf8);
    if (now.tokens > n_left_) { // it was begun with too few
        unbound_ = true;
        return true;
    }
    if (now.extra > planned_) { // than on the way that was the shortest
        planned_ = now.extra;
        share_   = std::min(share_, shared(now));
    }
    if (may_follow(now, needed_after(token), token)) {
        return true;
    }
    if (repeats) {
        note(token, repeated_);
        return false;
    }
    const std::string text = piece(token);
    ends_word_             = is_text() && !text.empty() && is_space(text[0]);
    note(token, places_);
    return false;
}

void grammar_budget::restrict(llama_token_data_array * candidates, grammar_states & states) {
    const need        now = needed(grammar_.stacks, grammar_.partial_utf8);
    std::vector<bool> may(static_cast<size_t>(tokens_->n_tokens()));
    for (const llama_token token : tokens_->end_tokens()) {
        may[static_cast<size_t>(token)] = true;
    }
    std::map<std::tuple<const llama_grammar_stacks *, uint32_t, int>, need> known;
    const bool walked = states.each([&](llama_token token, const llama_grammar_stacks & stacks,
                                        llama_partial_utf8 rest) {
        const auto begun           = std::tuple(&stacks, rest.value, rest.n_remain);
        const auto [entry, is_new] = known.try_emplace(begun);
        if (is_new) {
            entry->second = needed(stacks, rest);
        }
        may[static_cast<size_t>(token)] = may_follow(now, entry->second, token);
    });
    if (!walked && grammar_.partial_utf8.n_remain > 0) { // few tokens go on with a character
        for (size_t i = 0; i < candidates->size; i++) {
            const llama_token token = candidates->data[i].id;
            if (candidates->data[i].logit != -INFINITY && !llama_vocab_is_eog(vocab_, token)) {
                may[static_cast<size_t>(token)] = may_follow(now, needed_after(token), token);
            }
        }
    } else if (!walked) { // the shortest way is one at any rate
        const std::string text = lengths_.shortest(grammar_.stacks).text;
        for (size_t i = 0; i < candidates->size; i++) {
            const llama_token token = candidates->data[i].id;
            if (candidates->data[i].logit != -INFINITY && !llama_vocab_is_eog(vocab_, token)) {
                const std::string begin         = piece(token);
                may[static_cast<size_t>(token)] = !begin.empty() &&
                                                  text.compare(0, begin.size(), begin) == 0 &&
                                                  may_follow(now, needed_after(token), token);
            }
        }
    }
    const auto is_left = [&](const llama_token_data & one) {
        return one.logit != -INFINITY && may[static_cast<size_t>(one.id)];
    };
    if (std::none_of(candidates->data, candidates->data + candidates->size, is_left)) {
        if (ends_word_ || repeats_) {
            ends_repetitions_ = ends_repetitions_ && !repeats_;
            ends_word_ = repeats_ = false;
            restrict(candidates, states);
        } else {
            unbound_ = true;
        }
        return;
    }
    for (size_t i = 0; i < candidates->size; i++) {
        if (!may[static_cast<size_t>(candidates->data[i].id)]) {
            candidates->data[i].logit = -INFINITY;
        }
    }
}

void grammar_budget::accepts(llama_token token) {
    ends_word_ = false;
    n_written_ = !waits() && is_text() ? n_written_ + 1 : 0;
    written_.push(token);
    n_left_ -= n_left_ > 0;
    last_ += piece(token);
    if (last_.size() > LOOKED_BACK) {
        last_.erase(0, last_.size() - LOOKED_BACK);
    }
}

// Whether there are bounds. What is shared out is known when the grammar holds.
bool grammar_budget::begins() {
    if (unbound_ || waits()) {
        return false;
    }
    if (begun_) {
        return true;
    }
    begun_         = true;
    const need all = needed(grammar_.stacks, grammar_.partial_utf8);
    if (all.tokens > n_left_) {
        unbound_ = true;
        return false;
    }
    const uint32_t slack = n_left_ - all.tokens;
    planned_ = all.extra;
    share_   = shared(all);
    window_  = std::min(24U, slack / 6);
    word_    = std::min(4U, slack / 8);
    opening_ = std::min(8U, slack / 8);
    return true;
}

// How much of the extra tokens there is room for, so that half of what is left is free.
uint32_t grammar_budget::shared(const need & now) const {
    const uint64_t slack = n_left_ - now.tokens;
    return now.extra == 0 ? MOST_SHARED
                          : static_cast<uint32_t>(std::min<uint64_t>(
                                MOST_SHARED, slack * MOST_SHARED / (2 * uint64_t(now.extra))));
}

// Whether a token of this length in bytes cannot lead to where anything is ruled out.
bool grammar_budget::is_far(size_t n_bytes) const {
    const uint64_t more = uint64_t(n_bytes + 1) * (lengths_.growth() + 1) + window_ + opening_ + 8;
    return std::any_of(grammar_.stacks.begin(), grammar_.stacks.end(), [&](const auto & stack) {
        const auto need = lengths_.of(stack);
        return need.least != ENDLESS && more + need.least + need.extra < n_left_;
    });
}

bool grammar_budget::may_follow(const need & now, const need & after, llama_token token) const {
    const uint32_t left = n_left_ > 0 ? n_left_ - 1 : 0;
    if (n_left_ == 0 || after.tokens > left) {
        return false;
    }
    if (after.bytes < now.bytes || grammar_.partial_utf8.n_remain > 0) { // a step to the end
        return true;
    }
    if (ends_word_ || repeats_) { // another would go on with a word that the model has ended
        return false;
    }
    uint32_t kept = after.tokens + after.extra * share_ / MOST_SHARED;
    if (after.bytes > now.bytes) { // what it begins need not be longer than that
        kept = after.tokens + std::min(now.extra, after.extra) * share_ / MOST_SHARED + opening_;
    }
    if (left < kept) {
        return false;
    }
    if (left >= kept + window_ + word_ || !is_text()) {
        return true;
    }
    if (n_written_ >= SHORTEST_TEXT && ends_sentence(last_)) {
        return false;
    }
    const std::string text = piece(token);
    return left >= kept + word_ || text.empty() || !is_space(text[0]);
}

grammar_budget::need grammar_budget::needed(const llama_grammar_stacks & stacks,
                                            llama_partial_utf8           rest) {
    if (rest.n_remain == 0) {
        if (!lengths_.ends(stacks)) {
            return {ENDLESS, ENDLESS, 0};
        }
        const auto found = lengths_.shortest(stacks);
        return {spelled(found.text), static_cast<uint32_t>(found.text.size()), found.extra};
    }
    if (rest.n_remain < 0 || !tokens_->spells_bytes()) {
        return {ENDLESS, ENDLESS, 0};
    }
    // The best of the characters that begin so: one of each range that leads elsewhere. Its bytes
    // are then chosen one by one.
    const int          n_bits = 6 * rest.n_remain;
    const uint32_t     least  = rest.n_remain == 3 ? 0x10000 : rest.n_remain == 2 ? 0x800 : 0x80;
    const uint32_t     last   = (rest.value << n_bits) | ((1U << n_bits) - 1);
    const uint32_t     first  = std::min(std::max(rest.value << n_bits, least), last);
    std::set<uint32_t> tried  = {first};
    const auto         offer  = [&](uint32_t c) {
        if (first <= c && c <= last) {
            tried.insert(c);
        }
    };
    for (const llama_grammar_stack & stack : stacks) {
        if (stack.empty()) {
            continue;
        }
        const llama_grammar_element * element = stack.back();
        do {
            offer(element->value);
            offer(element->value + 1);
            element++;
        } while (element->type == LLAMA_GRETYPE_CHAR_ALT ||
                 element->type == LLAMA_GRETYPE_CHAR_RNG_UPPER);
    }
    need                       best = {ENDLESS, ENDLESS, 0};
    const llama_grammar_stacks from = stacks; // which may be the grammar's own
    const restored_place       restored(grammar_);
    for (const uint32_t c : tried) {
        grammar_.stacks       = from;
        grammar_.partial_utf8 = {0, 0};
        run_with_stack(GRAMMAR_STACK, [&] { llama_grammar_accept(&grammar_, c); });
        if (grammar_.stacks.empty()) {
            continue;
        }
        const need one = needed(grammar_.stacks, {0, 0});
        if (one.tokens < best.tokens) {
            best = one;
        }
    }
    const auto n_more = static_cast<uint32_t>(rest.n_remain);
    return {sum(best.tokens, n_more), sum(best.bytes, n_more), best.extra};
}

grammar_budget::need grammar_budget::needed_after(llama_token token) {
    const restored_place restored(grammar_);
    run_with_stack(GRAMMAR_STACK, [&] { llama_grammar_accept_impl(grammar_, token); });
    return needed(grammar_.stacks, grammar_.partial_utf8);
}

// The fewest tokens that spell a text, or ENDLESS.
uint32_t grammar_budget::spelled(const std::string & text) {
    const auto known = spelled_.find(text);
    if (known != spelled_.end()) {
        return known->second;
    }
    const std::u32string  characters = characters_of(text);
    std::vector<uint32_t> fewest(characters.size() + 1, ENDLESS);
    fewest.back() = 0;
    for (size_t i = characters.size(); i-- > 0;) {
        const uint32_t c = characters[i];
        if (c >= 0x80 && tokens_->spells_bytes()) {
            fewest[i] = sum(fewest[i + 1], c < 0x800 ? 2 : c < 0x10000 ? 3 : 4);
        }
        uint32_t node = 0;
        for (size_t end = i; end < characters.size();) {
            node = tokens_->child(node, characters[end++]);
            if (node == 0) {
                break;
            }
            const bool spells = std::any_of(
                tokens_->begin_of(node), tokens_->end_of(node), [&](const token_tree::token & one) {
                    return one.rest.n_remain == 0 && (!shown_ || shown_->shows(one.id));
                });
            if (spells) {
                fewest[i] = std::min(fewest[i], sum(fewest[end], 1));
            }
        }
    }
    if (spelled_.size() >= KEPT_TEXTS) {
        spelled_.clear();
    }
    return spelled_[text] = fewest[0];
}

// Whether a word, and a space, may come next.
bool grammar_budget::is_text() const {
    return std::any_of(grammar_.stacks.begin(), grammar_.stacks.end(), [](const auto & stack) {
        return !stack.empty() && holds(stack.back(), 'e') && holds(stack.back(), ' ');
    });
}

void grammar_budget::note(llama_token token, std::set<std::set<uint32_t>> & places) const {
    if (places.size() >= KEPT_PLACES) {
        return;
    }
    const std::u32string begin = characters_of(piece(token).substr(0, 4));
    std::set<uint32_t>   rules;
    for (const llama_grammar_stack & stack : grammar_.stacks) {
        const bool taking = grammar_.partial_utf8.n_remain > 0 ||
                            (!stack.empty() && !begin.empty() && holds(stack.back(), begin[0]));
        if (taking) {
            add_rules(rules, stack);
        }
    }
    places.insert(std::move(rules));
}

std::set<uint32_t> grammar_budget::here() const {
    std::set<uint32_t> rules;
    for (const llama_grammar_stack & stack : grammar_.stacks) {
        add_rules(rules, stack);
    }
    return rules;
}

// A rule at the end of its sequence leaves no place there, but one behind it in the one around it.
void grammar_budget::add_rules(std::set<uint32_t> & rules, const llama_grammar_stack & stack) const {
    for (const llama_grammar_element * place : stack) {
        const uint32_t rule = lengths_.rule_of(place);
        rules.insert(rule);
        if (place != grammar_.rules[rule].data() && place[-1].type == LLAMA_GRETYPE_RULE_REF) {
            rules.insert(place[-1].value);
        }
    }
}

std::string grammar_budget::piece(llama_token token) const {
    return common_token_to_piece(vocab_, token);
}

} // namespace pyllama
