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

// The methods of a kind of sampler, whose state is freed by the last of them. llama.cpp has more of
// them, for devices: those stay empty.
template <class Name, class Accept, class Apply, class Reset, class Clone, class Free>
llama_sampler_i sampler_methods(Name name, Accept accept, Apply apply, Reset reset, Clone clone,
                                Free free) {
    llama_sampler_i methods{};
    methods.name   = name;
    methods.accept = accept;
    methods.apply  = apply;
    methods.reset  = reset;
    methods.clone  = clone;
    methods.free   = free;
    return methods;
}

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
