#include "guard_log.hpp"

#include "ending.hpp"
#include "thread_memory.hpp"
#include "thread_state.hpp"

#include <atomic>
#include <cstring>

namespace {

using pyllama::this_thread;
using pyllama::thread_state;

constexpr size_t MAX_KEPT_LOG = 4096; // bytes of error lines kept for one failing call

std::atomic<void (*)(int32_t, const char *)> log_handler{nullptr};
std::atomic<int32_t>                         log_level{GGML_LOG_LEVEL_WARN};

void hand_to_python(ggml_log_level level, const std::string & line) {
    if (auto handler = pyllama::ending() ? nullptr : log_handler.load()) {
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
        state.level = state.is_trial && level < GGML_LOG_LEVEL_ERROR ? GGML_LOG_LEVEL_DEBUG : level;
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
    if (pyllama::ending() || !pyllama::settle_thread()) {
        return;
    }
    try {
        add_to_log(this_thread(), level, text);
    } catch (const std::bad_alloc &) {
        // Destructors of llama.cpp log, too, and nothing may leave one. The line is lost.
        this_thread().line.clear();
    }
}

} // namespace

namespace pyllama {

void hand_log_to(void (*handler)(int32_t, const char *)) noexcept {
    log_handler = handler;
}

void begin_log(thread_state & state) noexcept {
    state.errors.clear();
    state.is_trial = false; // of a call that never ended
}

void log_failed(thread_state & state, size_t first) noexcept {
    relabel(state, first, GGML_LOG_LEVEL_ERROR, RAISED);
}

void end_log(thread_state & state) noexcept {
    if (state.held.empty()) {
        return;
    }
    // What a handler in Python calls may fail, too, and is not what this call reports.
    const pyllama_caught_kind kind    = state.kind;
    std::string               message = std::move(state.message);
    std::string               errors  = std::move(state.errors);
    tell_held(state);
    state.kind    = kind;
    state.message = std::move(message);
    state.errors  = std::move(errors);
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

trial::trial() noexcept {
    this_thread().is_trial = true;
}

trial::~trial() noexcept {
    this_thread().is_trial = false;
}

void hear_log() noexcept {
    llama_log_set(on_log, nullptr);
}

} // namespace pyllama

extern "C" {

const char * pyllama_last_errors(void) {
    return pyllama::is_settled() ? this_thread().errors.c_str() : "";
}

void pyllama_set_log_level(int32_t level) {
    log_level = level;
}

} // extern "C"
