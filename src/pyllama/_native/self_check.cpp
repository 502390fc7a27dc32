#include "guard.hpp"

#include "ggml-alloc.h"
#include "ggml-cpp.h"

#include <algorithm>
#include <vector>

#ifdef _WIN32
#    define WIN32_LEAN_AND_MEAN
#    define NOMINMAX
#    include <windows.h>
#else
#    include <csignal>
#    include <dlfcn.h>
#    include <fcntl.h>
#    include <poll.h>
#    include <sys/resource.h>
#    include <sys/wait.h>
#    include <unistd.h>
#endif

using pyllama::guarded;

namespace {

constexpr int64_t N_IN  = 256; // a whole block of each type of weights
constexpr int64_t N_OUT = 64;

ggml_context_ptr make_context() {
    const size_t size = 8 * ggml_tensor_overhead() + ggml_graph_overhead();
    return ggml_context_ptr(ggml_init({size, nullptr, true}));
}

// Multiplies weights of a type, which lie in a kind of buffer, with some tokens.
void multiply(ggml_backend_t backend, ggml_backend_buffer_type_t kind, ggml_type type,
              int64_t n_tokens) {
    const ggml_context_ptr weights = make_context(), others = make_context();
    ggml_tensor * weight = ggml_new_tensor_2d(weights.get(), type, N_IN, N_OUT);
    ggml_tensor * input  = ggml_new_tensor_2d(others.get(), GGML_TYPE_F32, N_IN, n_tokens);
    ggml_tensor * output = ggml_mul_mat(others.get(), weight, input);

    // As llama.cpp asks whether weights may lie in such a buffer.
    const ggml_backend_buffer_ptr none(ggml_backend_buft_alloc_buffer(kind, 0));
    weight->buffer       = none.get();
    const bool supported = ggml_backend_supports_op(backend, output);
    weight->buffer       = nullptr;
    if (!supported) {
        return;
    }

    const ggml_backend_buffer_ptr held(ggml_backend_alloc_ctx_tensors_from_buft(weights.get(), kind));
    const ggml_backend_buffer_ptr rest(ggml_backend_alloc_ctx_tensors(others.get(), backend));
    std::vector<float>            values(N_IN * std::max(N_OUT, n_tokens), 0.5f);
    std::vector<uint8_t>          quantized(ggml_nbytes(weight));
    ggml_quantize_chunk(type, values.data(), quantized.data(), 0, N_OUT, N_IN, nullptr);
    ggml_backend_tensor_set(weight, quantized.data(), 0, quantized.size());
    ggml_backend_tensor_set(input, values.data(), 0, ggml_nbytes(input));

    ggml_cgraph * graph = ggml_new_graph(others.get());
    ggml_build_forward_expand(graph, output);
    ggml_backend_graph_compute(backend, graph);
}

#ifndef _WIN32

constexpr int PATIENCE_MS = 30000; // for a machine that swaps

[[noreturn]] void run_in_child(void (*work)(void *), void * argument, int done) {
    const rlimit no_core = {0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    for (int signal_number : {SIGILL, SIGSEGV, SIGBUS, SIGFPE, SIGABRT, SIGALRM, SIGTERM}) {
        signal(signal_number, SIG_DFL); // faulthandler's would print the parent's stack
    }
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    alarm(PATIENCE_MS / 1000);
    const int nowhere = open("/dev/null", O_RDWR);
    dup2(nowhere, STDOUT_FILENO);
    dup2(nowhere, STDERR_FILENO);
    ggml_log_set([](ggml_log_level, const char *, void *) {}, nullptr); // not Python's
    ggml_set_abort_callback([](const char *) { _exit(1); });
    try {
        work(argument);
    } catch (...) {
        _exit(1);
    }
    const char byte = 1;
    _exit(write(done, &byte, 1) == 1 ? 0 : 1);
}

// Whether the child wrote that it is done. It ends in any case, which need not be waited for: a
// handler of the program's for SIGCHLD may have done so.
bool wait_for_child(pid_t child, int done) {
    for (int left = PATIENCE_MS; left > 0; left -= 10) {
        pollfd     wanted = {done, POLLIN, 0};
        const bool told   = poll(&wanted, 1, 10) > 0;
        char       byte   = 0;
        const bool ended  = waitpid(child, nullptr, WNOHANG) != 0;
        if (told || ended) {
            const bool survived = read(done, &byte, 1) == 1;
            if (!ended) {
                waitpid(child, nullptr, 0);
            }
            return survived;
        }
    }
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    return false;
}

#endif

} // namespace

extern "C" {

// How well a module suits this processor: 0 where it does not run, and where that is not known.
int32_t guarded_backend_score(const char * path) {
    return guarded(PYLLAMA_CAUGHT, [&]() -> int32_t {
        using score_function = int();
#ifdef _WIN32
        const HMODULE module = LoadLibraryA(path);
        const auto    score =
            module ? reinterpret_cast<score_function *>(GetProcAddress(module, "ggml_backend_score"))
                   : nullptr;
        const int result = score ? score() : 0;
        if (module) {
            FreeLibrary(module);
        }
#else
        void *     module = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        const auto score =
            module ? reinterpret_cast<score_function *>(dlsym(module, "ggml_backend_score")) : nullptr;
        const int result = score ? score() : 0;
        if (module) {
            dlclose(module);
        }
#endif
        return result;
    });
}

// Multiplies with each kind of kernel that a CPU backend has for quantized weights: with one token and
// with several, and with weights in the file's order and rearranged. For pyllama_survives(): nothing is
// caught.
void pyllama_multiply_on(void * reg_pointer) {
    const auto reg     = static_cast<ggml_backend_reg_t>(reg_pointer);
    const auto device  = ggml_backend_reg_dev_get(reg, 0);
    const auto address = [&](const char * name) { return ggml_backend_reg_get_proc_address(reg, name); };

    const ggml_backend_ptr backend(ggml_backend_dev_init(device, nullptr));
    if (const auto set = reinterpret_cast<ggml_backend_set_n_threads_t>(address("ggml_backend_set_n_threads"))) {
        set(backend.get(), 1); // a child of fork() has no other
    }
    std::vector<ggml_backend_buffer_type_t> kinds = {ggml_backend_dev_buffer_type(device)};
    if (const auto more = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(
            address("ggml_backend_dev_get_extra_bufts"))) {
        for (auto * kind = more(device); kind && *kind; kind++) {
            kinds.push_back(*kind);
        }
    }
    for (const auto kind : kinds) {
        for (ggml_type type : {GGML_TYPE_Q4_0, GGML_TYPE_Q8_0, GGML_TYPE_Q4_K, GGML_TYPE_Q6_K}) {
            for (int64_t n_tokens : {1, 32}) {
                multiply(backend.get(), kind, type, n_tokens);
            }
        }
    }
}

// Does some work in a child of fork(), and says whether it came to its end; true where there can be no
// child. The work may take no lock that another thread of this process may hold now.
bool pyllama_survives(void (*work)(void *), void * argument) {
#ifdef _WIN32
    (void) work;
    (void) argument;
    return true;
#else
    int ends[2];
    if (pipe(ends)) {
        return true;
    }
    fcntl(ends[0], F_SETFD, FD_CLOEXEC);
    fcntl(ends[1], F_SETFD, FD_CLOEXEC);
    const pid_t child = fork();
    if (child == 0) {
        run_in_child(work, argument, ends[1]);
    }
    close(ends[1]);
    const bool survived = child < 0 || wait_for_child(child, ends[0]);
    close(ends[0]);
    return survived;
#endif
}

} // extern "C"
