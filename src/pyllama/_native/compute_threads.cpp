#include "compute_threads.hpp"

#include "guard.hpp"

#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace {

// As many threads at once, each with the stack that OpenMP's have by default.
class trial {
  public:
    ~trial() {
        {
            const std::lock_guard lock(mutex_);
            over_ = true;
        }
        change_.notify_all();
        for (std::thread & thread : threads_) {
            thread.join();
        }
    }

    void start(int32_t n_threads) {
        threads_.reserve(static_cast<size_t>(n_threads));
        for (int32_t i = 0; i < n_threads; i++) {
            threads_.emplace_back([this] {
                std::unique_lock lock(mutex_);
                change_.wait(lock, [this] { return over_; });
            });
        }
    }

    size_t started() const { return threads_.size(); }

  private:
    std::mutex               mutex_;
    std::condition_variable  change_;
    std::vector<std::thread> threads_;
    bool                     over_ = false;
};

} // namespace

void pyllama::require_compute_threads(int32_t n_threads) {
    thread_local int32_t n_used = 1;
    if (n_threads <= 1) {
        return;
    }
    if (n_threads > n_used) {
        trial threads;
        try {
            threads.start(n_threads - 1);
        } catch (const std::exception &) { // std::system_error, or no memory for the list
            throw refused("computing with " + std::to_string(n_threads) + " threads needs " +
                          std::to_string(n_threads - 1) + " more, and " +
                          std::to_string(threads.started()) +
                          " could be started: the system lacks memory or allows no more threads");
        }
    }
    n_used = n_threads;
}
