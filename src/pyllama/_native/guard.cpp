#include "guard.hpp"

#include "apart.hpp"
#include "log.h"
#include "thread_memory.hpp"
#include "thread_state.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#ifdef __GLIBCXX__
#include <cxxabi.h>
#endif
#ifdef __GLIBC__
#include <unistd.h>
#endif

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#ifdef _MSC_VER
#include <intrin.h>
#endif
#define PYLLAMA_VECTOR_REGISTERS 1
#endif

namespace {

using pyllama::this_thread;
using pyllama::thread_state;

constexpr size_t MAX_KEPT_LOG = 4096; // bytes of error lines kept for one failing call

std::atomic<void (*)(int32_t, const char *)> log_handler{nullptr};
std::atomic<bool (*)(void)>                  poll_handler{nullptr};
std::atomic<int32_t>                         log_level{GGML_LOG_LEVEL_WARN};

// Threads inside guarded calls, counted in several places so that threads do not wait for each
// other's cache line.
struct alignas(64) count {
    std::atomic<int32_t> value{0};
};

constexpr uint32_t N_COUNTS = 16;

count                 inside[N_COUNTS];
std::atomic<uint32_t> next_count{0};
std::atomic<bool>     is_ending{false};

count & my_count() {
    thread_local count & mine = inside[next_count++ % N_COUNTS];
    return mine;
}

void on_abort(const char * message) {
    if (pyllama::is_settled() && this_thread().depth > 0) {
        thread_state & state = this_thread();
        pyllama::strand(PYLLAMA_CAUGHT_ASSERTION, message);
        state.asserted = true;
        state.assertion = message;
        throw pyllama::assertion_failure(message);
    }
    // No guarded call on this thread to return to (a worker of a backend): ggml ends the process.
    std::fprintf(stderr, "%s\n", message);
    std::fflush(stderr);
}

void hand_to_python(ggml_log_level level, const std::string & line) {
    if (auto handler = is_ending ? nullptr : log_handler.load()) {
        pyllama::call_python([&] { handler(level, line.c_str()); });
    }
}

void tell(ggml_log_level level, const std::string & line) {
    if (level >= log_level.load()) {
        hand_to_python(level, line);
    }
}

// The level of errors that the caller raises. They are logged at INFO: nobody should read them twice.
constexpr ggml_log_level RAISED = GGML_LOG_LEVEL_NONE;

// What a call has logged, from its first line that waits on, gets another level.
void relabel(thread_state & state, size_t first, ggml_log_level from, ggml_log_level to) noexcept {
    for (size_t i = first; i < state.held.size(); i++) {
        ggml_log_level & level = state.held[i].first;
        level                  = level >= from ? to : level;
    }
}

void tell_held(thread_state & state) noexcept {
    for (const auto & [level, line] : std::exchange(state.held, {})) {
        try {
            if (level == RAISED) {
                hand_to_python(GGML_LOG_LEVEL_INFO, line);
            } else {
                tell(level, line);
            }
        } catch (...) { // no memory to tell it with
        }
    }
}

void end_log_line(thread_state & state) {
    if (state.level >= GGML_LOG_LEVEL_ERROR && state.depth > 0 &&
        state.errors.size() + state.line.size() < MAX_KEPT_LOG) {
        state.errors += state.line;
        state.errors += '\n';
    }
    if (!state.listener || !state.listener->exclusive) {
        const bool is_error = state.level >= GGML_LOG_LEVEL_ERROR && state.depth > 0;
        if (state.holds_log || is_error || !state.held.empty()) {
            state.held.emplace_back(state.level, state.line);
        } else {
            tell(state.level, state.line);
        }
    }
    const std::string line = std::exchange(state.line, {});
    if (state.listener) {
        state.listener->hear(line);
    }
}

// llama.cpp logs in pieces: a line may come in several calls, the later ones at level CONT.
void add_to_log(thread_state & state, ggml_log_level level, const char * text) {
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

void on_log(ggml_log_level level, const char * text, void *) {
    // The state of a thread that is ending may be gone already.
    if (is_ending || !pyllama::settle_thread()) {
        return;
    }
    try {
        add_to_log(this_thread(), level, text);
    } catch (const std::bad_alloc &) {
        // Destructors of llama.cpp log, too, and nothing may leave one. The line is lost.
        this_thread().line.clear();
    }
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

guard_scope::guard_scope() noexcept :
    settled_(settle_thread()),
    outermost_(settled_ && this_thread().depth == 0),
    admitted_(settled_) {
    if (!settled_) {
        return;
    }
    thread_state & state = this_thread();
    if (outermost_) {
        state.kind = PYLLAMA_CAUGHT_NOTHING;
        state.errors.clear();
        state.asserted = false;
        // Both in this order: pyllama_end() sets the flag first, and then looks at the counts.
        my_count().value++;
        if (is_ending) {
            admitted_ = false;
        }
    }
    state.depth++;
    n_held_ = state.held.size();
}

guard_scope::~guard_scope() noexcept {
    if (!settled_) {
        return;
    }
    thread_state & state = this_thread();
    if (failed_) {
        relabel(state, n_held_, GGML_LOG_LEVEL_ERROR, RAISED);
    }
    if (outermost_ && !state.held.empty()) {
        // What a handler in Python calls may fail, too, and is not what this call reports.
        const pyllama_caught_kind kind    = state.kind;
        std::string               message = std::move(state.message);
        std::string               errors  = std::move(state.errors);
        tell_held(state);
        state.kind    = kind;
        state.message = std::move(message);
        state.errors  = std::move(errors);
    }
    state.depth--;
    if (outermost_) {
        my_count().value--;
        tidy_registers();
    }
}

void keep_caught(pyllama_caught_kind kind, const char * message) noexcept {
    thread_state & state = this_thread();
    state.kind           = kind;
    try {
        state.message = message;
    } catch (const std::bad_alloc &) {
        state.message.clear();
    }
}

void keep_refusal() noexcept {
    if (is_settled()) { // else there is nowhere to keep it, and pyllama_caught() knows
        keep_caught(PYLLAMA_CAUGHT_ENDING, "the interpreter is ending, and pyllama is closed");
    }
}

bool take_swallowed_assertion() noexcept {
    thread_state & state = this_thread();
    if (!std::exchange(state.asserted, false)) {
        return false;
    }
    keep_caught(PYLLAMA_CAUGHT_ASSERTION, state.assertion.c_str());
    return true;
}

void keep_current_exception() noexcept {
    if (take_swallowed_assertion()) { // whatever llama.cpp made of it
        return;
    }
    try {
        throw;
    } catch (const stranded & failure) {
        keep_caught(failure.kind, failure.what());
    } catch (const assertion_failure & failure) {
        keep_caught(PYLLAMA_CAUGHT_ASSERTION, failure.what());
    } catch (const refused & failure) {
        keep_caught(PYLLAMA_CAUGHT_REFUSED, failure.what());
    } catch (const std::bad_alloc &) {
        keep_caught(PYLLAMA_CAUGHT_OUT_OF_MEMORY, "out of memory");
    } catch (const std::exception & exception) {
        keep_caught(PYLLAMA_CAUGHT_EXCEPTION, exception.what());
    } catch (...) {
        keep_caught(PYLLAMA_CAUGHT_EXCEPTION, "an exception of unknown type");
    }
}

void call_python(const std::function<void()> & call) {
    if (ask_home(call)) { // Python knows the thread that called us, and its signals reach that one
        return;
    }
#ifdef __GLIBCXX__
    try {
        call();
    } catch (const abi::__forced_unwind &) {
        park();
    }
#else
    call();
#endif
}

bool ending() noexcept {
    return is_ending;
}

void park() noexcept {
    for (;;) {
        std::this_thread::sleep_for(std::chrono::hours(24));
    }
}

log_listener::log_listener(bool exclusive, callback on_line) noexcept :
    exclusive(exclusive),
    on_line(std::move(on_line)),
    previous(std::exchange(this_thread().listener, this)) {}

log_listener::~log_listener() noexcept {
    this_thread().listener = previous;
}

void log_listener::hear(const std::string & line) {
    // What the callback itself does may be logged as well, and is not its business.
    this_thread().listener = nullptr;
    try {
        on_line(line);
    } catch (...) {
        this_thread().listener = this;
        throw;
    }
    this_thread().listener = this;
}

int32_t compute(int32_t stopped, const std::function<int32_t()> & call) {
    thread_state & state = this_thread();
    if (state.holds_log) { // a callback in Python that computes, within a computation
        return call();
    }
    struct held_log {
        thread_state & state;
        const size_t   first = state.held.size();
        bool           was_stopped = false;

        explicit held_log(thread_state & state) : state(state) { state.holds_log = true; }
        ~held_log() noexcept {
            state.holds_log = false;
            if (was_stopped) {
                relabel(state, first, GGML_LOG_LEVEL_INFO, GGML_LOG_LEVEL_DEBUG);
            }
        }
    } log(state);
    const int32_t result = call();
    log.was_stopped      = result == stopped;
    return result;
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
    return pyllama::is_settled() ? this_thread().kind : PYLLAMA_CAUGHT_REFUSED;
}

const char * pyllama_caught_message(void) {
    return pyllama::is_settled() ? this_thread().message.c_str()
                                 : "out of memory: a thread that uses pyllama for the first time "
                                   "needs about 2 MB";
}

const char * pyllama_last_errors(void) {
    return pyllama::is_settled() ? this_thread().errors.c_str() : "";
}

void pyllama_free(void * memory) {
    std::free(memory);
}

void pyllama_install(void (*log)(int32_t, const char *), bool (*poll)(void)) {
    const pyllama::guard_scope first_use; // of what the thread that imports pyllama keeps
    log_handler  = log;
    poll_handler = poll;
    ggml_set_abort_callback(on_abort);
    pyllama::watch_allocations();
    pyllama::restore_log();
    // libllama-common writes to stdout and stderr by itself; its failures reach us as exceptions.
    common_log_set_verbosity_thold(-1);
}

// From here on every guarded call is refused, and computations stop.
void pyllama_end(void) {
    is_ending = true;
}

// Whether no thread is inside a guarded call any more, after waiting for so long at most.
bool pyllama_wait_until_left(int32_t milliseconds) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(milliseconds);
    for (;;) {
        int32_t n = 0;
        for (const count & place : inside) {
            n += place.value;
        }
        if (n == 0) {
            log_handler  = nullptr;
            poll_handler = nullptr;
            return true;
        }
        if (std::chrono::steady_clock::now() >= until) {
            return false;
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
}

// Waits for what a context's devices compute, when nothing else may call it any more.
void pyllama_settle_context(llama_context * ctx) {
    const pyllama::guard_scope scope;
    try {
        llama_synchronize(ctx);
    } catch (...) { // a lost device: there is nothing to wait for
    }
}

// For when a thread is still in C at the very end: what it uses must not be destroyed under it.
void pyllama_leave_without_destructors(void) {
    log_handler  = nullptr;
    poll_handler = nullptr;
#ifdef __GLIBC__
    on_exit(
        [](int status, void *) {
            std::fflush(nullptr);
            _exit(status);
        },
        nullptr);
#endif
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
    if (interrupt->cancelled || is_ending) {
        return true;
    }
    if (interrupt->poll_signals) {
        const int64_t now = llama_time_us();
        if (now - interrupt->last_poll_us >= POLL_INTERVAL_US) {
            interrupt->last_poll_us = now;
            bool stop = false;
            if (auto poll = poll_handler.load()) {
                pyllama::call_python([&] { stop = poll(); });
            }
            return stop;
        }
    }
    return false;
}

} // extern "C"
