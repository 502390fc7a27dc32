#include "grammar_states.hpp"

#include "grammar_lengths.hpp"

#include <algorithm>
#include <array>
#include <stdexcept>

namespace pyllama {

namespace {

constexpr size_t MAX_STATES = 2048;
constexpr size_t MAX_KEPT   = 64; // answers, of a bit for each token

struct too_many_states : std::runtime_error {
    using std::runtime_error::runtime_error;
};

bool takes_tokens(const llama_grammar & grammar) {
    return std::any_of(grammar.rules.begin(), grammar.rules.end(), [](const auto & rule) {
        return std::any_of(rule.begin(), rule.end(), [](const llama_grammar_element & element) {
            return element.type == LLAMA_GRETYPE_TOKEN || element.type == LLAMA_GRETYPE_TOKEN_NOT;
        });
    });
}

bool any_ends(const llama_grammar_stacks & stacks) {
    return std::any_of(stacks.begin(), stacks.end(),
                       [](const llama_grammar_stack & stack) { return stack.empty(); });
}

// Whether a character that begins so may come next.
bool any_allows(const llama_grammar & grammar, const llama_grammar_stacks & stacks,
                llama_partial_utf8 rest) {
    constexpr uint32_t             no_characters = 0;
    const llama_grammar_candidates begun         = {{0, &no_characters, rest, 0}};
    return std::any_of(stacks.begin(), stacks.end(), [&](const llama_grammar_stack & stack) {
        return llama_grammar_reject_candidates_for_stack(grammar.rules, stack, begun).empty();
    });
}

} // namespace

// A place in the grammar, and what is known of it so far.
struct grammar_states::state {
    const llama_grammar_stacks &              stacks;
    std::map<std::vector<uint32_t>, state *>  next;    // by the stacks that take the character
    std::array<state *, 128>                  ascii{}; // by the character
    std::array<bool, 128>                     known{};
    std::vector<bool>                         allowed; // empty if it has not been asked for
};

grammar_states::grammar_states(std::shared_ptr<const token_tree> tokens, llama_grammar & grammar)
    : tokens_(std::move(tokens)), grammar_(grammar), takes_tokens_(takes_tokens(grammar)) {}

grammar_states::~grammar_states() = default;

void grammar_states::clear() {
    states_.clear();
    n_kept_ = 0;
}

grammar_states::state * grammar_states::at(const llama_grammar_stacks & stacks) {
    const auto [place, is_new] = states_.try_emplace(stacks);
    if (is_new) {
        place->second = std::make_unique<state>(state{place->first, {}, {}, {}, {}});
    }
    return place->second.get();
}

// Which stacks take a character decides where it leads; null is nowhere.
grammar_states::state * grammar_states::behind(state & from,
                                               uint32_t character) {
    std::vector<uint32_t> taking;
    for (uint32_t i = 0; i < from.stacks.size(); i++) {
        if (!from.stacks[i].empty() && holds(from.stacks[i].back(), character)) {
            taking.push_back(i);
        }
    }
    if (taking.empty()) {
        return nullptr;
    }
    const auto [place, is_new] = from.next.try_emplace(std::move(taking), nullptr);
    if (is_new) {
        if (states_.size() >= MAX_STATES) {
            throw too_many_states("a grammar has too many states");
        }
        grammar_.stacks = from.stacks;
        llama_grammar_accept(&grammar_, character);
        place->second = at(grammar_.stacks);
    }
    return place->second;
}

grammar_states::state * grammar_states::step(state & from,
                                             uint32_t character) {
    if (character >= from.ascii.size()) {
        return behind(from, character);
    }
    if (!from.known[character]) {
        from.ascii[character] = behind(from, character);
        from.known[character] = true;
    }
    return from.ascii[character];
}

void grammar_states::walk(state & from, const visitor & visit) {
    struct place {
        uint32_t end; // of what is below it
        state *  reached;
    };
    const auto take = [&](uint32_t node, const state & reached) {
        for (const auto * token = tokens_->begin_of(node); token != tokens_->end_of(node); token++) {
            if (token->rest.n_remain == 0 || any_allows(grammar_, reached.stacks, token->rest)) {
                visit(token->id, reached.stacks, token->rest);
            }
        }
    };
    const auto & nodes = tokens_->nodes();
    take(0, from);
    std::vector<place> path = {{nodes[0].end, &from}};
    for (uint32_t node = 1; node < nodes.size();) {
        while (node >= path.back().end) {
            path.pop_back();
        }
        state * reached = step(*path.back().reached, nodes[node].character);
        if (!reached) {
            node = nodes[node].end;
            continue;
        }
        take(node, *reached);
        path.push_back({nodes[node].end, reached});
        node++;
    }
}

std::vector<bool> grammar_states::tokens_of(state & from) {
    std::vector<bool> allowed(static_cast<size_t>(tokens_->n_tokens()));
    for (const llama_token token : tokens_->end_tokens()) {
        allowed[static_cast<size_t>(token)] = any_ends(from.stacks);
    }
    walk(from, [&](llama_token token, const llama_grammar_stacks &, llama_partial_utf8) {
        allowed[static_cast<size_t>(token)] = true;
    });
    return allowed;
}

const std::vector<bool> * grammar_states::allowed() {
    const std::vector<bool> * found = nullptr;
    at_present([&](state & here) {
        if (here.allowed.empty()) {
            here.allowed = tokens_of(here);
            n_kept_++;
        }
        found = &here.allowed;
    });
    return found;
}

bool grammar_states::each(const visitor & visit) {
    return at_present([&](state & here) { walk(here, visit); });
}

// Whether it could be done; half of it may have been.
bool grammar_states::at_present(const std::function<void(state &)> & what) {
    if (grammar_.partial_utf8.n_remain != 0 || takes_tokens_) {
        return false;
    }
    if (states_.size() > MAX_STATES / 2 || n_kept_ >= MAX_KEPT) {
        clear();
    }
    const restored_stacks restored(grammar_);
    try {
        what(*at(grammar_.stacks));
        return true;
    } catch (const too_many_states &) {
        clear();
        return false;
    } catch (...) {
        clear(); // of states whose next ones were not found
        throw;
    }
}

} // namespace pyllama
