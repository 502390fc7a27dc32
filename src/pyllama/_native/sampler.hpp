// What the sources of samplers, chains and grammars share.
#pragma once

#include "guard.hpp"

#include <memory>

namespace pyllama {

struct sampler_deleter {
    void operator()(llama_sampler * sampler) const noexcept { llama_sampler_free(sampler); }
};

using sampler_ptr = std::unique_ptr<llama_sampler, sampler_deleter>;

template <class Init> llama_sampler * guarded_init(Init && init) noexcept {
    return guarded<llama_sampler *>(nullptr, std::forward<Init>(init));
}

// A kind of sampler that is written here: State has the methods name, accept, apply, reset and clone.
// llama.cpp knows more methods, for devices: those stay empty.
template <class State> class sampler_kind {
  public:
    static State & state(const llama_sampler * sampler) {
        return *static_cast<State *>(sampler->ctx);
    }

    static bool has(const llama_sampler * sampler) { return sampler->iface == &methods; }

    template <class... From> static llama_sampler * make(From &&... from) {
        return llama_sampler_init(&methods, new State(std::forward<From>(from)...));
    }

  private:
    static llama_sampler_i fill() {
        llama_sampler_i filled{};
        filled.name   = [](const llama_sampler * own) { return state(own).name(); };
        filled.accept = [](llama_sampler * own, llama_token token) { state(own).accept(token); };
        filled.apply  = [](llama_sampler * own, llama_token_data_array * candidates) {
            state(own).apply(candidates);
        };
        filled.reset = [](llama_sampler * own) { state(own).reset(); };
        filled.clone = [](const llama_sampler * own) {
            return llama_sampler_init(&methods, new State(state(own).clone()));
        };
        filled.free = [](llama_sampler * own) { delete &state(own); };
        return filled;
    }

    static inline llama_sampler_i methods = fill();
};

// Whether a sampler written in Python stands behind it (python_sampler.cpp).
bool is_python_sampler(const llama_sampler * sampler);

bool is_grammar(const llama_sampler * sampler);

// Whether a grammar lets the token come next. It changes nothing.
bool grammar_allows(llama_sampler * grammar, llama_token token);

// Whether a token that a grammar allows leaves room to complete it, if it has bounds.
bool budget_allows(llama_sampler * grammar, llama_token token);

// Rules out what does not, of candidates that the grammar has been applied to.
void restrict_to_budget(llama_sampler * grammar, llama_token_data_array * candidates);

// A copy that is safe to use, whatever state the original is in.
sampler_ptr clone_sampler(const llama_sampler * sampler);

// Makes a sampler that was copied in the middle of a token safe to use.
void forget_pending(llama_sampler * copy);

// Applies it, and moves what is left of the candidates to where they began.
void apply_sampler(llama_sampler * sampler, llama_token_data_array * candidates);

} // namespace pyllama
