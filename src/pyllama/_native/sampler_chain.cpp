#include "sampler_chain.hpp"

#include "sampler.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

using pyllama::guarded;
using pyllama::sampler_ptr;

struct pyllama_chain {
    bool                        no_perf;
    sampler_ptr                 chain;
    std::vector<pyllama_effect> effects; // of its members
    sampler_ptr                 grammar; // null without one
    int32_t                     n_resampled = 0;
};

namespace {

// The candidates of a whole vocabulary, in memory that a thread's next choice uses again: a cache
// holds it, as it would not hold that of every chain.
class scratch {
  public:
    explicit scratch(size_t size) : candidates_(std::move(spare)) { candidates_.resize(size); }
    ~scratch() { spare = std::move(candidates_); }
    scratch(const scratch &) = delete;
    scratch & operator=(const scratch &) = delete;

    llama_token_data_array all() { return {candidates_.data(), candidates_.size(), -1, false}; }

  private:
    static thread_local std::vector<llama_token_data> spare;
    std::vector<llama_token_data> candidates_; // a sampler written in Python may choose as well
};

thread_local std::vector<llama_token_data> scratch::spare;

sampler_ptr init_chain(bool no_perf) {
    llama_sampler_chain_params params = llama_sampler_chain_default_params();
    params.no_perf                    = no_perf;
    return sampler_ptr(llama_sampler_chain_init(params));
}

void add(llama_sampler * chain, sampler_ptr sampler) {
    llama_sampler_chain_add(chain, sampler.get());
    static_cast<void>(sampler.release());
}

llama_sampler * at(const pyllama_chain & chain, int32_t i) {
    return llama_sampler_chain_get(chain.chain.get(), i);
}

int32_t size(const pyllama_chain & chain) {
    return llama_sampler_chain_n(chain.chain.get());
}

// Member by member, so that a member that cannot be copied does not leak those before it.
sampler_ptr clone_members(const pyllama_chain & from) {
    sampler_ptr copy = init_chain(from.no_perf);
    for (int32_t i = 0; i < size(from); i++) {
        add(copy.get(), pyllama::clone_sampler(at(from, i)));
    }
    return copy;
}

// False for logits that a model with broken weights computes: no sampler is made for them.
bool fill(llama_token_data_array & candidates, const float * logits) {
    const auto n_vocab  = static_cast<llama_token>(candidates.size);
    int        n_usable = 0;
    for (llama_token id = 0; id < n_vocab; id++) {
        const float logit = logits[id];
        n_usable += logit < INFINITY; // false for NaN, too
        candidates.data[id] = {id, logit, 0.0f};
    }
    return n_usable == n_vocab;
}

int32_t draw(pyllama_chain & chain, llama_token_data_array candidates) {
    llama_sampler_apply(chain.chain.get(), &candidates);
    if (candidates.selected < 0 || static_cast<size_t>(candidates.selected) >= candidates.size) {
        return PYLLAMA_NO_CANDIDATE;
    }
    const llama_token_data & drawn = candidates.data[candidates.selected];
    if (drawn.logit == -INFINITY) {
        return PYLLAMA_NO_CANDIDATE;
    }
    return drawn.logit < INFINITY ? drawn.id : PYLLAMA_BAD_LOGITS; // which a sampler overflowed
}

// Whether the last member takes the highest logit, and the others make none higher.
bool takes_highest(const pyllama_chain & chain) {
    const std::vector<pyllama_effect> & effects = chain.effects;
    return !effects.empty() && effects.back() == PYLLAMA_TAKES_HIGHEST &&
           std::all_of(effects.begin(), effects.end() - 1,
                       [](pyllama_effect effect) { return effect == PYLLAMA_LOWERS; });
}

// The first of the highest logits, or PYLLAMA_BAD_LOGITS, or PYLLAMA_NO_CANDIDATE if none is
// possible. Most blocks are only counted in, which compilers turn into few instructions.
llama_token highest(const float * logits, llama_token n_vocab) {
    constexpr llama_token BLOCK = 64;

    llama_token found    = PYLLAMA_NO_CANDIDATE;
    float       most     = -INFINITY;
    int         n_usable = 0;
    for (llama_token begin = 0; begin < n_vocab; begin += BLOCK) {
        const llama_token end      = std::min(begin + BLOCK, n_vocab);
        int               n_higher = 0;
        for (llama_token id = begin; id < end; id++) {
            n_higher += logits[id] > most;
            n_usable += logits[id] < INFINITY; // false for NaN, too
        }
        for (llama_token id = begin; n_higher > 0 && id < end; id++) {
            if (logits[id] > most) {
                most  = logits[id];
                found = id;
            }
        }
    }
    return n_usable == n_vocab ? found : PYLLAMA_BAD_LOGITS;
}

// What a chain that takes the highest logit draws, found without a list of all candidates. If its
// other members lower that one, another may be higher then: PYLLAMA_NO_CANDIDATE.
int32_t draw_highest(pyllama_chain & chain, const float * logits, llama_token n_vocab) {
    const llama_token token = highest(logits, n_vocab);
    if (token < 0) {
        return token;
    }
    llama_token_data alone = {token, logits[token], 0.0f};
    const int32_t    drawn = draw(chain, {&alone, 1, -1, false});
    return drawn == token && alone.logit == logits[token] ? token : PYLLAMA_NO_CANDIDATE;
}

int32_t draw_freely(pyllama_chain & chain, const float * logits, llama_token n_vocab) {
    const int32_t token = takes_highest(chain) ? draw_highest(chain, logits, n_vocab)
                                               : PYLLAMA_NO_CANDIDATE;
    if (token != PYLLAMA_NO_CANDIDATE) {
        return token;
    }
    scratch candidates(static_cast<size_t>(n_vocab));
    auto    all = candidates.all();
    return fill(all, logits) ? draw(chain, all) : PYLLAMA_BAD_LOGITS;
}

bool calls_python(const pyllama_chain & chain) {
    for (int32_t i = 0; i < size(chain); i++) {
        if (pyllama::is_python_sampler(at(chain, i))) {
            return true;
        }
    }
    return false;
}

bool any_possible(const llama_token_data_array & candidates) {
    for (size_t i = 0; i < candidates.size; i++) {
        if (candidates.data[i].logit > -INFINITY) {
            return true;
        }
    }
    return false;
}

// What a chain draws of the tokens that its grammar allows, and its bounds if asked.
int32_t draw_allowed(pyllama_chain & chain, const float * logits, llama_token n_vocab, bool bounded) {
    chain.n_resampled++;
    scratch                memory(static_cast<size_t>(n_vocab));
    llama_token_data_array candidates = memory.all();
    fill(candidates, logits);
    llama_sampler_apply(chain.grammar.get(), &candidates);
    if (!any_possible(candidates)) {
        return PYLLAMA_GRAMMAR_STUCK;
    }
    if (bounded) {
        pyllama::restrict_to_budget(chain.grammar.get(), &candidates);
    }
    const int32_t token = draw(chain, candidates);
    // A member written in Python may have brought back what the grammar had ruled out.
    if (token >= 0 && !pyllama::grammar_allows(chain.grammar.get(), token)) {
        return PYLLAMA_TOKEN_REFUSED;
    }
    return token;
}

// Asking a grammar about a whole vocabulary takes longer than about one token, so the choice is made
// without it, and made again under it only if it refuses. So it is with the grammar's bounds.
int32_t draw_under_grammar(pyllama_chain & chain, const float * logits, llama_token n_vocab) {
    std::vector<float> copy;
    if (chain.grammar && calls_python(chain)) { // which may do to the context what it likes
        copy.assign(logits, logits + n_vocab);
        logits = copy.data();
    }
    int32_t token = draw_freely(chain, logits, n_vocab);
    if (!chain.grammar || token < 0) {
        return token;
    }
    if (!pyllama::grammar_allows(chain.grammar.get(), token)) {
        token = draw_allowed(chain, logits, n_vocab, false);
    }
    if (token < 0 || pyllama::budget_allows(chain.grammar.get(), token)) {
        return token;
    }
    const int32_t bounded = draw_allowed(chain, logits, n_vocab, true);
    // Another sampler may allow none of those: then it is cut off rather than not answered.
    return bounded == PYLLAMA_NO_CANDIDATE ? token : bounded;
}

bool members_allow(const pyllama_chain & chain, llama_token token) {
    for (int32_t i = 0; i < size(chain); i++) {
        llama_sampler * member = at(chain, i);
        if (pyllama::is_grammar(member) && !pyllama::grammar_allows(member, token)) {
            return false;
        }
    }
    return true;
}

} // namespace

namespace pyllama {

int32_t sample(pyllama_chain & chain, const float * logits, int32_t n_vocab) {
    const int32_t token = draw_under_grammar(chain, logits, n_vocab);
    if (token < 0) {
        return token;
    }
    if (!members_allow(chain, token)) {
        return PYLLAMA_TOKEN_REFUSED;
    }
    llama_sampler_accept(chain.grammar.get(), token);
    llama_sampler_accept(chain.chain.get(), token);
    return token;
}

int32_t accept(pyllama_chain & chain, llama_token token, bool accept_grammar) {
    llama_sampler * grammar = accept_grammar ? chain.grammar.get() : nullptr;
    if (!members_allow(chain, token) || (grammar && !grammar_allows(grammar, token))) {
        return PYLLAMA_TOKEN_REFUSED;
    }
    llama_sampler_accept(grammar, token);
    llama_sampler_accept(chain.chain.get(), token);
    return 0;
}

llama_sampler * grammar_of(const pyllama_chain & chain) {
    return chain.grammar.get();
}

} // namespace pyllama

extern "C" {

pyllama_chain * guarded_chain_init(bool no_perf) {
    return guarded<pyllama_chain *>(nullptr, [&] {
        auto chain     = std::make_unique<pyllama_chain>();
        chain->no_perf = no_perf;
        chain->chain   = init_chain(no_perf);
        return chain.release();
    });
}

int32_t guarded_chain_free(pyllama_chain * chain) {
    return guarded([&] { delete chain; });
}

int32_t guarded_chain_add(pyllama_chain * chain, llama_sampler * sampler, pyllama_effect effect) {
    return guarded([&] {
        chain->effects.reserve(chain->effects.size() + 1);
        llama_sampler_chain_add(chain->chain.get(), sampler);
        chain->effects.push_back(effect);
    });
}

llama_sampler * guarded_chain_get(pyllama_chain * chain, int32_t i) {
    return guarded<llama_sampler *>(nullptr, [&] { return at(*chain, i); });
}

llama_sampler * guarded_chain_remove(pyllama_chain * chain, int32_t i) {
    return guarded<llama_sampler *>(nullptr, [&] {
        chain->effects.erase(chain->effects.begin() + i);
        return llama_sampler_chain_remove(chain->chain.get(), i);
    });
}

int32_t guarded_chain_set_grammar(pyllama_chain * chain, llama_sampler * grammar) {
    return guarded([&] { chain->grammar.reset(grammar); });
}

llama_sampler * guarded_chain_grammar(pyllama_chain * chain) {
    return guarded<llama_sampler *>(nullptr, [&] { return pyllama::grammar_of(*chain); });
}

pyllama_chain * guarded_chain_clone(const pyllama_chain * from) {
    return guarded<pyllama_chain *>(nullptr, [&] {
        auto copy     = std::make_unique<pyllama_chain>();
        copy->no_perf = from->no_perf;
        copy->chain   = clone_members(*from);
        copy->effects = from->effects;
        if (from->grammar) {
            copy->grammar = pyllama::clone_sampler(from->grammar.get());
        }
        return copy.release();
    });
}

int32_t guarded_chain_copy_state(const pyllama_chain * from, pyllama_chain * to) {
    return guarded([&] {
        llama_sampler_copy(from->chain.get(), to->chain.get());
        llama_sampler_copy(from->grammar.get(), to->grammar.get());
        for (int32_t i = 0; i < size(*to); i++) {
            pyllama::forget_pending(at(*to, i));
        }
    });
}

int32_t guarded_chain_apply(pyllama_chain * chain, llama_token_data_array * candidates) {
    return guarded([&] { pyllama::apply_sampler(chain->chain.get(), candidates); });
}

int32_t guarded_chain_sample(pyllama_chain * chain, llama_context * ctx, int32_t i) {
    return guarded(PYLLAMA_CAUGHT, [&]() -> int32_t {
        const float * logits = llama_get_logits_ith(ctx, i);
        return logits ? pyllama::sample(*chain, logits, pyllama::vocabulary_size(ctx))
                      : PYLLAMA_NO_OUTPUT;
    });
}

// Of a chain that the context runs on its device: what the device selected, or the rest of the
// chain on the candidates that it left.
int32_t guarded_chain_sample_attached(pyllama_chain * chain, llama_context * ctx, int32_t i) {
    return guarded(PYLLAMA_CAUGHT, [&]() -> int32_t {
        if (llama_get_sampled_token_ith(ctx, i) == LLAMA_TOKEN_NULL &&
            !llama_get_sampled_logits_ith(ctx, i) && !llama_get_logits_ith(ctx, i)) {
            return PYLLAMA_NO_OUTPUT;
        }
        return llama_sampler_sample(chain->chain.get(), ctx, i);
    });
}

int32_t guarded_chain_accept(pyllama_chain * chain, llama_token token, bool accept_grammar) {
    return guarded(PYLLAMA_CAUGHT, [&] { return pyllama::accept(*chain, token, accept_grammar); });
}

int32_t guarded_chain_reset(pyllama_chain * chain) {
    return guarded([&] {
        llama_sampler_reset(chain->grammar.get());
        llama_sampler_reset(chain->chain.get());
    });
}

uint32_t guarded_chain_get_seed(const pyllama_chain * chain) {
    return guarded<uint32_t>(LLAMA_DEFAULT_SEED,
                             [&] { return llama_sampler_get_seed(chain->chain.get()); });
}

int32_t guarded_chain_perf(const pyllama_chain * chain, pyllama_chain_perf * perf) {
    return guarded([&] {
        const llama_perf_sampler_data data = llama_perf_sampler(chain->chain.get());
        *perf = {data.t_sample_ms, data.n_sample, chain->n_resampled};
    });
}

int32_t guarded_chain_perf_reset(pyllama_chain * chain) {
    return guarded([&] {
        llama_perf_sampler_reset(chain->chain.get());
        chain->n_resampled = 0;
    });
}

} // extern "C"
