#include "sampler.hpp"

#include <atomic>

using pyllama::guarded_init;

namespace {

pyllama_sampler_handlers                      installed;
std::atomic<const pyllama_sampler_handlers *> handlers{nullptr};

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

class python_sampler {
  public:
    python_sampler(uint64_t id, std::string name) : id_(id), name_(std::move(name)) {}
    ~python_sampler() {
        if (const auto * current = handlers.load()) {
            pyllama::call_python([&] { current->free(id_); });
        }
    }
    python_sampler(const python_sampler &) = delete;
    python_sampler & operator=(const python_sampler &) = delete;

    const char * name() const { return name_.c_str(); }

    void accept(llama_token token) {
        check(ask([&](const auto & handlers) { return handlers.accept(id_, token); }));
    }

    void apply(llama_token_data_array * candidates) {
        check(ask([&](const auto & handlers) { return handlers.apply(id_, candidates); }));
    }

    void reset() {
        check(ask([&](const auto & handlers) { return handlers.reset(id_); }));
    }

    python_sampler clone() const {
        const auto id = ask([&](const auto & handlers) { return handlers.clone(id_); });
        check(id == 0);
        return {id, name_};
    }

  private:
    uint64_t    id_;
    std::string name_;
};

using python_kind = pyllama::sampler_kind<python_sampler>;

} // namespace

bool pyllama::is_python_sampler(const llama_sampler * sampler) {
    return python_kind::has(sampler);
}

extern "C" {

void pyllama_install_samplers(const pyllama_sampler_handlers * new_handlers) {
    installed = *new_handlers;
    handlers  = &installed;
}

llama_sampler * guarded_sampler_init_python(uint64_t id, const char * name) {
    return guarded_init([&] { return python_kind::make(id, name); });
}

} // extern "C"
