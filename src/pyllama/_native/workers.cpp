#include "workers.hpp"

#include "guard.hpp"
#include "own_thread.hpp"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <list>
#include <mutex>

namespace pyllama {

namespace {

// Samplers need little, but grammars recurse: see MAX_PIECE and the limits of pyllama.Grammar.
constexpr size_t HELPER_STACK = 2 << 20;

struct task {
    const std::function<void(int32_t)> & work;
    const int32_t                        n;
    std::atomic<int32_t>                 next{0};
    int32_t                              n_wanted; // helpers that may still join
    int32_t                              n_inside = 0;

    void run() {
        for (int32_t i = next++; i < n; i = next++) {
            work(i);
        }
    }
};

class team {
  public:
    void run(task & task) {
        {
            const std::lock_guard lock(mutex_);
            hire(task.n_wanted);
            tasks_.push_back(&task);
        }
        come_.notify_all();
        task.run();
        std::unique_lock lock(mutex_);
        tasks_.remove(&task);
        done_.wait(lock, [&] { return task.n_inside == 0; });
    }

  private:
    void hire(int32_t n_threads) {
        for (; n_threads_ < n_threads; n_threads_++) {
            try {
                start_thread(HELPER_STACK, [this] { help(); });
            } catch (const std::exception &) { // the machine has no more, or no memory
                return;
            }
        }
    }

    void help() {
        std::unique_lock lock(mutex_);
        for (;;) {
            come_.wait(lock, [&] { return !tasks_.empty(); });
            task & task = *tasks_.front();
            if (--task.n_wanted == 0) {
                tasks_.pop_front();
            }
            task.n_inside++;
            lock.unlock();
            task.run();
            lock.lock();
            task.n_inside--;
            done_.notify_all();
        }
    }

    std::mutex              mutex_;
    std::condition_variable come_, done_;
    std::list<task *>       tasks_; // that helpers may join
    int32_t                 n_threads_ = 0;
};

} // namespace

void run_each(int32_t n, int32_t n_threads, const std::function<void(int32_t)> & work) {
    task task{work, n, {}, std::min(n, n_threads) - 1};
    if (task.n_wanted > 0) {
        only_one<team>().run(task);
    } else {
        task.run();
    }
}

} // namespace pyllama
