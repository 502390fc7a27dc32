#include "apart.hpp"

#include "ending.hpp"
#include "no_memory.h"
#include "own_thread.hpp"
#include "thread_memory.hpp"
#include "thread_state.hpp"

#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <list>
#include <memory>
#include <mutex>
#include <utility>

namespace pyllama {

namespace {

// What a model's file or a graph takes of the stack is not known; threads that Python starts have
// as much on most systems.
constexpr size_t STACK = 4 << 20;

struct errand {
    const std::function<void()> * call;
    const no_memory               policy;
    thread_state &                home;

    std::mutex                    mutex;
    std::condition_variable       changed;
    enum { WORKING, ASKING, DONE, STRANDED } state = WORKING;
    const std::function<void()> * question         = nullptr;
    std::exception_ptr            thrown; // by the call, or by the question
    pyllama_caught_kind           kind = PYLLAMA_CAUGHT_NOTHING;
    char                          message[1024] = {};

    errand(const std::function<void()> & call, no_memory policy, thread_state & home)
        : call(&call), policy(policy), home(home) {}
};

thread_local errand * mine = nullptr; // on a thread of run_apart()

thread_local thread_state   own_state;
thread_local thread_state * lent_state = nullptr;

void work(const std::shared_ptr<errand> & todo) {
    {
        const works_for home(todo->home);
        mine = todo.get();
        try {
            (*todo->call)();
        } catch (...) {
            todo->thrown = std::current_exception();
        }
        mine = nullptr;
    }
    const std::lock_guard lock(todo->mutex);
    todo->state = errand::DONE;
    todo->changed.notify_all();
}

// Threads that wait for errands. They are kept, because beginning takes memory and time.
class helpers {
  public:
    void take(std::shared_ptr<errand> todo) {
        {
            const std::lock_guard lock(mutex_);
            if (n_idle_ == 0) {
                start_thread(STACK, [this] { serve(); });
                n_idle_++;
            }
            errands_.push_back(std::move(todo));
            n_idle_--;
        }
        come_.notify_one();
    }

  private:
    static constexpr int MOST_IDLE = 4;

    void serve() {
        std::unique_lock lock(mutex_);
        for (;;) {
            come_.wait(lock, [this] { return !errands_.empty(); });
            auto todo = std::move(errands_.front());
            errands_.pop_front();
            lock.unlock();
            work(todo);
            todo.reset();
            lock.lock();
            if (n_idle_ == MOST_IDLE) {
                return;
            }
            n_idle_++;
        }
    }

    std::mutex                         mutex_;
    std::condition_variable            come_;
    std::list<std::shared_ptr<errand>> errands_; // each with a thread that is about to take it
    int                                n_idle_ = 0;
};

void answer(errand & todo, std::unique_lock<std::mutex> & lock) {
    lock.unlock();
    std::exception_ptr thrown;
    try {
        call_python(*todo.question);
    } catch (...) {
        thrown = std::current_exception();
    }
    lock.lock();
    todo.thrown = thrown;
    todo.state  = errand::WORKING;
    todo.changed.notify_all();
}

[[noreturn]] void on_no_memory() {
    if (is_settled() && mine && mine->policy == no_memory::strands) {
        strand(PYLLAMA_CAUGHT_OUT_OF_MEMORY, "out of memory");
    }
    throw std::bad_alloc();
}

// ggml goes on with the null pointer, or asserts with half of what it changes done.
void on_no_memory_in_ggml(size_t) {
    if (!is_settled()) { // a thread of OpenMP's, that works for nobody we know
        return;
    }
    strand(PYLLAMA_CAUGHT_OUT_OF_MEMORY, "out of memory");
    if (this_thread().depth > 0) {
        throw std::bad_alloc();
    }
}

} // namespace

// The system ends the process where there is no memory for a thread's own variables when they are
// first used. Those that C++ keeps for exceptions are used now, rather than when memory is short.
thread_state::thread_state() noexcept {
    volatile int n_thrown = std::uncaught_exceptions();
    static_cast<void>(n_thrown);
}

thread_state & this_thread() noexcept {
    return lent_state ? *lent_state : own_state;
}

works_for::works_for(thread_state & home) noexcept {
    lent_state = &home;
}

works_for::~works_for() noexcept {
    lent_state = nullptr;
}

void run_apart(no_memory policy, const std::function<void()> & call) {
    if (mine) { // already there
        return call();
    }
    const auto todo = std::make_shared<errand>(call, policy, this_thread());
    only_one<helpers>().take(todo);

    std::unique_lock lock(todo->mutex);
    for (;;) {
        todo->changed.wait(lock, [&] { return todo->state != errand::WORKING; });
        if (todo->state != errand::ASKING) {
            break;
        }
        answer(*todo, lock);
    }
    if (todo->state == errand::STRANDED) {
        throw stranded(todo->kind, std::string(todo->message) +
                                       ". What had been made until then cannot be freed: its "
                                       "memory stays taken until the process ends");
    }
    if (todo->thrown) {
        std::rethrow_exception(todo->thrown);
    }
}

void run_with_memory(size_t size, const std::function<void()> & call) {
    constexpr size_t OTHERS = 64 << 20; // other threads take some meanwhile
    void * const     memory = std::malloc(OTHERS + size);
    std::free(memory);
    if (memory) {
        return call();
    }
    bool begun = false;
    try {
        run_apart(no_memory::strands, [&] {
            begun = true;
            call();
        });
    } catch (const refused &) { // a process without other threads, as a template's is
        if (begun) {
            throw;
        }
        call();
    }
}

void free_apart(const std::function<void()> & call) {
    try {
        run_apart(no_memory::unwinds, call);
    } catch (const refused &) { // no thread to be had; freeing asserts nothing that is known
        call();
    }
}

void strand(pyllama_caught_kind kind, const char * message) noexcept {
    if (!mine) {
        return;
    }
    {
        const std::lock_guard lock(mine->mutex);
        mine->kind = kind;
        std::strncpy(mine->message, message, sizeof(mine->message) - 1);
        mine->state = errand::STRANDED;
        mine->changed.notify_all();
    }
    park();
}

bool ask_home(const std::function<void()> & question) {
    if (!mine) {
        return false;
    }
    std::unique_lock lock(mine->mutex);
    mine->question = &question;
    mine->state    = errand::ASKING;
    mine->changed.notify_all();
    mine->changed.wait(lock, [] { return mine->state == errand::WORKING; });
    if (auto thrown = std::exchange(mine->thrown, nullptr)) {
        std::rethrow_exception(thrown);
    }
    return true;
}

void watch_allocations() noexcept {
    std::set_new_handler(on_no_memory);
    pyllama_set_no_memory_handler(on_no_memory_in_ggml);
}

void require_memory(size_t size) {
    void * memory = std::malloc(size);
    if (!memory) {
        throw refused("out of memory: " + std::to_string(size) + " bytes more are needed");
    }
    std::free(memory);
}

} // namespace pyllama
