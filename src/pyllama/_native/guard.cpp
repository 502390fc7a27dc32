#include "guard.hpp"

#include "log.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#ifdef _MSC_VER
#include <intrin.h>
#endif
#define PYLLAMA_VECTOR_REGISTERS 1
#endif

namespace {

constexpr size_t MAX_KEPT_LOG = 4096; // bytes of error lines kept for one failing call

struct thread_state {
    int                 depth = 0; // of guarded calls
    pyllama_caught_kind kind  = PYLLAMA_CAUGHT_NOTHING;
    std::string         message;
    std::string         errors; // what llama.cpp logged as errors during the guarded call
    std::string         line;   // of the log, until its line break
    ggml_log_level      level = GGML_LOG_LEVEL_NONE;
    pyllama::log_listener * listener = nullptr;
};

thread_local thread_state this_thread;

std::atomic<void (*)(int32_t, const char *)> log_handler{nullptr};
std::atomic<bool (*)(void)>                  poll_handler{nullptr};
std::atomic<int32_t>                         log_level{GGML_LOG_LEVEL_WARN};

void on_abort(const char * message) {
    if (this_thread.depth > 0) {
        throw pyllama::assertion_failure(message);
    }
    // No guarded call on this thread to return to (a worker of a backend): ggml ends the process.
    std::fprintf(stderr, "%s\n", message);
    std::fflush(stderr);
}

void end_log_line(thread_state & state) {
    if (state.level >= GGML_LOG_LEVEL_ERROR && state.depth > 0 &&
        state.errors.size() + state.line.size() < MAX_KEPT_LOG) {
        state.errors += state.line;
        state.errors += '\n';
    }
    auto handler = state.listener && state.listener->exclusive ? nullptr : log_handler.load();
    if (handler && state.level >= log_level.load()) {
        handler(state.level, state.line.c_str());
    }
    const std::string line = std::exchange(state.line, {});
    if (state.listener) {
        state.listener->hear(line);
    }
}

// llama.cpp logs in pieces: a line may come in several calls, the later ones at level CONT.
void on_log(ggml_log_level level, const char * text, void *) {
    thread_state & state = this_thread;
    if (level != GGML_LOG_LEVEL_CONT) {
        if (!state.line.empty()) {
            end_log_line(state);
        }
        state.level = level;
    }
    while (const char * end = std::strchr(text, '\n')) {
        state.line.append(text, end);
        if (!state.line.empty()) {
            end_log_line(state);
        }
        text = end + 1;
    }
    state.line += text;
}

#ifdef PYLLAMA_VECTOR_REGISTERS

bool has_avx() {
#ifdef _MSC_VER
    constexpr int AVX_AND_OSXSAVE = 1 << 28 | 1 << 27;
    int           registers[4];
    __cpuid(registers, 1);
    return (registers[2] & AVX_AND_OSXSAVE) == AVX_AND_OSXSAVE;
#else
    return __builtin_cpu_supports("avx");
#endif
}

#if defined(__GNUC__) || defined(__clang__)
__attribute__((target("avx")))
#endif
void clear_upper_halves() {
    _mm256_zeroupper();
}

// llama.cpp's kernels leave something in the upper halves of vector registers. Until those are
// cleared, code that uses the lower halves (ours, its samplers, Python's) is up to 4 times slower.
void tidy_registers() {
    static const bool avx = has_avx();
    if (avx) {
        clear_upper_halves();
    }
}

#else

void tidy_registers() {}

#endif

} // namespace

namespace pyllama {

guard_scope::guard_scope() noexcept {
    if (this_thread.depth++ == 0) {
        this_thread.kind = PYLLAMA_CAUGHT_NOTHING;
        this_thread.errors.clear();
    }
}

guard_scope::~guard_scope() noexcept {
    if (--this_thread.depth == 0) {
        tidy_registers();
    }
}

void keep_caught(pyllama_caught_kind kind, const char * message) noexcept {
    this_thread.kind = kind;
    try {
        this_thread.message = message;
    } catch (const std::bad_alloc &) {
        this_thread.message.clear();
    }
}

log_listener::log_listener(bool exclusive, callback on_line) noexcept :
    exclusive(exclusive),
    on_line(std::move(on_line)),
    previous(std::exchange(this_thread.listener, this)) {}

log_listener::~log_listener() noexcept {
    this_thread.listener = previous;
}

void log_listener::hear(const std::string & line) {
    // What the callback itself does may be logged as well, and is not its business.
    this_thread.listener = nullptr;
    try {
        on_line(line);
    } catch (...) {
        this_thread.listener = this;
        throw;
    }
    this_thread.listener = this;
}

void restore_log() noexcept {
    llama_log_set(on_log, nullptr);
}

char * copy_string(const std::string & text) {
    auto * copy = static_cast<char *>(std::malloc(text.size() + 1));
    if (!copy) {
        throw std::bad_alloc();
    }
    std::memcpy(copy, text.c_str(), text.size() + 1);
    return copy;
}

} // namespace pyllama

extern "C" {

pyllama_caught_kind pyllama_caught(void) {
    return this_thread.kind;
}

const char * pyllama_caught_message(void) {
    return this_thread.message.c_str();
}

const char * pyllama_last_errors(void) {
    return this_thread.errors.c_str();
}

void pyllama_free(void * memory) {
    std::free(memory);
}

void pyllama_install(void (*log)(int32_t, const char *), bool (*poll)(void)) {
    log_handler  = log;
    poll_handler = poll;
    ggml_set_abort_callback(on_abort);
    pyllama::restore_log();
    // libllama-common writes to stdout and stderr by itself; its failures reach us as exceptions.
    common_log_set_verbosity_thold(-1);
}

void pyllama_uninstall(void) {
    log_handler  = nullptr;
    poll_handler = nullptr;
}

void pyllama_set_log_level(int32_t level) {
    log_level = level;
}

const char * pyllama_upstream_commit(void) {
    return PYLLAMA_LLAMA_CPP_COMMIT;
}

// The abort callback of every context: llama.cpp asks before each node of the graph.
bool pyllama_should_stop(void * data) {
    constexpr int64_t POLL_INTERVAL_US = 50'000;

    auto * interrupt = static_cast<pyllama_interrupt *>(data);
    if (interrupt->cancelled) {
        return true;
    }
    if (interrupt->poll_signals) {
        const int64_t now = llama_time_us();
        if (now - interrupt->last_poll_us >= POLL_INTERVAL_US) {
            interrupt->last_poll_us = now;
            auto poll = poll_handler.load();
            return poll && poll();
        }
    }
    return false;
}

} // extern "C"
