#include "sampler.hpp"

#include <atomic>

using pyllama::guarded_init;

namespace {

struct python_sampler {
    uint64_t    id;
    std::string name;
};

pyllama_sampler_handlers                      installed;
std::atomic<const pyllama_sampler_handlers *> handlers{nullptr};

const python_sampler & self(const llama_sampler * sampler) {
    return *static_cast<const python_sampler *>(sampler->ctx);
}

const pyllama_sampler_handlers & python() {
    const auto * current = handlers.load();
    if (!current) {
        throw std::runtime_error("Python is gone");
    }
    return *current;
}

// Calls a handler. The Python side keeps what was raised, and raises it again once C has returned.
template <class Call> auto ask(Call && call) {
    decltype(call(python())) answer{};
    pyllama::call_python([&] { answer = call(python()); });
    return answer;
}

void check(int32_t failed) {
    if (failed) {
        throw std::runtime_error("a sampler raised an exception in Python");
    }
}

const char * name(const llama_sampler * sampler) {
    return self(sampler).name.c_str();
}

void accept(llama_sampler * sampler, llama_token token) {
    check(ask([&](const auto & handlers) { return handlers.accept(self(sampler).id, token); }));
}

void apply(llama_sampler * sampler, llama_token_data_array * candidates) {
    check(ask([&](const auto & handlers) { return handlers.apply(self(sampler).id, candidates); }));
}

void reset(llama_sampler * sampler) {
    check(ask([&](const auto & handlers) { return handlers.reset(self(sampler).id); }));
}

llama_sampler * make(uint64_t id, const char * name);

llama_sampler * clone(const llama_sampler * sampler) {
    const auto id = ask([&](const auto & handlers) { return handlers.clone(self(sampler).id); });
    check(id == 0);
    return make(id, name(sampler));
}

void free(llama_sampler * sampler) {
    if (const auto * current = handlers.load()) {
        pyllama::call_python([&] { current->free(self(sampler).id); });
    }
    delete static_cast<python_sampler *>(sampler->ctx);
}

llama_sampler_i python_sampler_i = pyllama::sampler_methods(name, accept, apply, reset, clone, free);

llama_sampler * make(uint64_t id, const char * name) {
    return llama_sampler_init(&python_sampler_i, new python_sampler{id, name});
}

} // namespace

bool pyllama::is_python_sampler(const llama_sampler * sampler) {
    return sampler->iface == &python_sampler_i;
}

extern "C" {

void pyllama_install_samplers(const pyllama_sampler_handlers * new_handlers) {
    installed = *new_handlers;
    handlers  = &installed;
}

llama_sampler * guarded_sampler_init_python(uint64_t id, const char * name) {
    return guarded_init([&] { return make(id, name); });
}

} // extern "C"
