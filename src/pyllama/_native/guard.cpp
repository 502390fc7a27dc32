#include "guard.hpp"

#include "apart.hpp"
#include "ending.hpp"
#include "guard_log.hpp"
#include "interrupt.hpp"
#include "log.h"
#include "registers.hpp"
#include "thread_memory.hpp"
#include "thread_state.hpp"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#ifdef __GLIBCXX__
#include <cxxabi.h>
#endif

namespace {

using pyllama::this_thread;
using pyllama::thread_state;

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
        state.asserted = false;
        begin_log(state);
        admitted_ = enter_guard();
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
        log_failed(state, n_held_);
    }
    if (outermost_) {
        end_log(state);
    }
    state.depth--;
    if (outermost_) {
        leave_guard();
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

void pyllama_free(void * memory) {
    std::free(memory);
}

void pyllama_install(void (*log)(int32_t, const char *), bool (*poll)(void)) {
    const pyllama::guard_scope first_use; // of what the thread that imports pyllama keeps
    pyllama::hand_log_to(log);
    pyllama::poll_signals_by(poll);
    ggml_set_abort_callback(on_abort);
    pyllama::watch_allocations();
    pyllama::hear_log();
    // libllama-common writes to stdout and stderr by itself; its failures reach us as exceptions.
    common_log_set_verbosity_thold(-1);
}

const char * pyllama_upstream_commit(void) {
    return PYLLAMA_LLAMA_CPP_COMMIT;
}

} // extern "C"
