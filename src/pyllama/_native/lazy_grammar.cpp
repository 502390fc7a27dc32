// While it waits for its trigger, a lazy grammar searches all text so far with std::regex, and
// libstdc++'s recurses for each character that a repetition takes: some ten thousand of them
// overflow an ordinary stack. Long texts are therefore searched on a thread with one that is
// deep enough.
#include "lazy_grammar.hpp"

#include "deep_stack.hpp"

namespace {

struct lazy_grammar {
    pyllama::sampler_ptr grammar;
    const llama_vocab *  vocab;
    size_t               stack_per_byte;
    size_t               n_bytes; // accepted since the beginning
};

lazy_grammar & self(const llama_sampler * sampler) {
    return *static_cast<lazy_grammar *>(sampler->ctx);
}

size_t piece_length(const llama_vocab * vocab, llama_token token) {
    const int32_t length = llama_token_to_piece(vocab, token, nullptr, 0, 0, true);
    return static_cast<size_t>(length < 0 ? -length : length);
}

void accept(llama_sampler * sampler, llama_token token) {
    lazy_grammar & lazy = self(sampler);
    lazy.n_bytes += piece_length(lazy.vocab, token);
    const size_t stack = lazy.n_bytes * lazy.stack_per_byte;
    if (stack > pyllama::DEEPEST_STACK) {
        throw std::runtime_error("after " + std::to_string(lazy.n_bytes) +
                                 " bytes the text is too long for these trigger patterns");
    }
    pyllama::run_with_stack(stack, [&] { llama_sampler_accept(lazy.grammar.get(), token); });
}

const char * name(const llama_sampler *) {
    return "grammar";
}

void apply(llama_sampler * sampler, llama_token_data_array * candidates) {
    llama_sampler_apply(self(sampler).grammar.get(), candidates);
}

void reset(llama_sampler * sampler) {
    llama_sampler_reset(self(sampler).grammar.get());
    self(sampler).n_bytes = 0;
}

llama_sampler * make(lazy_grammar state);

llama_sampler * clone(const llama_sampler * sampler) {
    const lazy_grammar & lazy = self(sampler);
    return make({pyllama::clone_sampler(lazy.grammar.get()), lazy.vocab, lazy.stack_per_byte,
                 lazy.n_bytes});
}

void free(llama_sampler * sampler) {
    delete &self(sampler);
}

llama_sampler_i lazy_grammar_i = [] {
    llama_sampler_i methods{};
    methods.name   = name;
    methods.accept = accept;
    methods.apply  = apply;
    methods.reset  = reset;
    methods.clone  = clone;
    methods.free   = free;
    return methods;
}();

llama_sampler * make(lazy_grammar state) {
    return llama_sampler_init(&lazy_grammar_i, new lazy_grammar(std::move(state)));
}

} // namespace

pyllama::sampler_ptr pyllama::with_deep_stack(sampler_ptr grammar, const llama_vocab * vocab,
                                              size_t stack_per_byte) {
    return sampler_ptr(make({std::move(grammar), vocab, stack_per_byte, 0}));
}
