// Sequences that go on by themselves, on a thread of their own, while Python looks after what came
// out and prepares what joins them.
//
// So a device does not wait for the interpreter, which other threads keep busy. Between two batches
// the thread changes the memory as it was asked to, and takes in what joins.
#include "context.hpp"
#include "ending.hpp"
#include "own_thread.hpp"
#include "running_sequence.hpp"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <iterator>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

using pyllama::guarded;
using pyllama::running_sequence;

namespace {

using clock_type = std::chrono::steady_clock;

// As threads have that Python starts.
constexpr size_t STACK = 8 << 20;

// What llama_decode returns where the memory has too few free cells. Nothing has changed then.
constexpr int32_t NO_ROOM = 1;

// How often wait() looks whether Python has woken it. Python writes a flag for that: a call of C
// would let go of the interpreter.
constexpr auto GLANCE = std::chrono::milliseconds(1);

// What is to be changed in the memory between two batches: positions of a sequence are removed, or
// shared with another one.
struct change {
    llama_seq_id seq_id;
    llama_seq_id copy; // < 0: they are removed
    llama_pos    begin;
    llama_pos    end;
};

class member {
  public:
    member(pyllama_part & part, const llama_vocab * vocab) : part_(&part) {
        if (part.run) {
            run_ = std::make_unique<running_sequence>(*part.run, vocab);
            run_->begin_after(part.tokens, part.n_tokens);
        }
    }

    const pyllama_part * part() const { return part_; }
    running_sequence *   run() const { return run_.get(); }
    bool                 over() const { return over_; }

    // Without what is drafted.
    int32_t n_rows() const {
        return in_memory_ ? run_->n_tokens() - run_->n_computed() : part_->n_tokens;
    }

    // Whether tokens may be drafted for its next batch.
    bool may_draft() const { return in_memory_; }

    void add_to(pyllama::batch_rows & rows) const {
        if (in_memory_) {
            rows.add(*run_);
            return;
        }
        rows.add(part_->tokens, part_->n_tokens, part_->pos, part_->seq_id, run_ ? 1 : 0);
        if (run_) {
            run_->draw().output = rows.size() - 1;
        }
    }

    // Its rows are in memory.
    void computed() {
        in_memory_ = true;
        if (run_) {
            run_->computed();
        }
    }

    // After a batch. Returns whether there is news for Python.
    bool settle() {
        over_              = over_ || (in_memory_ && !(run_ && run_->goes_on()));
        settled_in_memory_ = in_memory_;
        n_sampled_         = run_ ? run_->n_tokens() : 0;
        n_in_memory_       = run_ ? run_->n_computed() : 0;
        return is_news();
    }

    bool is_news() const {
        const bool more = part_->each && n_sampled_ > part_->n_sampled;
        return over_ || more || settled_in_memory_ != part_->computed;
    }

    void tell(bool anyway) {
        part_->is_news = anyway || is_news();
        if (part_->is_news) {
            part_->computed    = settled_in_memory_;
            part_->over        = over_;
            part_->n_sampled   = n_sampled_;
            part_->n_in_memory = n_in_memory_;
        }
    }

  private:
    pyllama_part *                    part_;
    std::unique_ptr<running_sequence> run_;
    bool                              in_memory_ = false;
    bool                              over_      = false;
    // As it was after the last batch.
    bool    settled_in_memory_ = false;
    int32_t n_sampled_         = 0;
    int32_t n_in_memory_       = 0;
};

class generation {
  public:
    // n_draft: the most tokens drafted for a sequence. n_outputs: the most outputs of a batch.
    generation(llama_context * ctx, int32_t n_threads, int32_t n_draft, int32_t n_outputs)
        : ctx_(ctx), memory_(llama_get_memory(ctx)), n_threads_(n_threads), n_draft_(n_draft),
          n_outputs_(n_outputs),
          vocab_(llama_model_get_vocab(llama_get_model(ctx))),
          n_batch_(static_cast<int32_t>(llama_n_batch(ctx))),
          n_ubatch_(static_cast<int32_t>(llama_n_ubatch(ctx))),
          table_(n_draft > 0 ? std::make_unique<pyllama::draft_table>() : nullptr) {}

    void add(pyllama_part & part) {
        member added(part, vocab_);
        {
            const std::lock_guard lock(mutex_);
            joining_.push_back(std::move(added));
        }
        changed_.notify_all();
    }

    // While it is paused, its owner uses the memory itself: then the change is made at once.
    void add(const change & wanted) {
        std::unique_lock lock(mutex_);
        changes_.push_back(wanted);
        changed_.notify_all();
        changed_.wait(lock, [&] { return !paused_ || (!busy_ && changes_.empty()); });
    }

    // Lets it go on, waits for news, and tells the parts what is known of them. Returns what the
    // batch returned that failed, or 0. Nothing is computed after such a batch.
    int32_t wait(const volatile bool & woken, double seconds) {
        const auto until = clock_type::now() + std::chrono::duration_cast<clock_type::duration>(
                                                   std::chrono::duration<double>(seconds));
        std::unique_lock lock(mutex_);
        if (paused_) {
            paused_   = false;
            n_passed_ = 0;
            changed_.notify_all();
        }
        while (!news_ && goes_on() && !woken && !pyllama::ending() && clock_type::now() < until) {
            changed_.wait_for(lock, GLANCE);
        }
        tell();
        if (failed_ == PYLLAMA_CAUGHT) {
            pyllama::keep_caught(kind_, message_.c_str());
        }
        return failed_;
    }

    // Has it stop between two batches, with the memory changed as wanted, until wait().
    void pause() {
        std::unique_lock lock(mutex_);
        // One batch at least is computed between two pauses: else it might never go on.
        changed_.wait(lock, [&] { return paused_ || n_passed_ > 0 || !goes_on(); });
        paused_ = true;
        changed_.wait(lock, [&] { return !busy_ && changes_.empty(); });
    }

    // Has a part go on no more, after telling what is known of it. It stays paused.
    void remove(const pyllama_part & part) {
        pause();
        const std::lock_guard lock(mutex_);
        const auto is_it = [&](const member & one) { return one.part() == &part; };
        for (member & one : members_) {
            if (is_it(one)) {
                one.tell(true);
            }
        }
        members_.remove_if(is_it);
        joining_.remove_if(is_it);
    }

    const std::string & message() const { return message_; }

    void serve() {
        std::unique_lock lock(mutex_);
        for (;;) {
            changed_.wait(lock, [&] {
                return closing_ || !changes_.empty() || (!paused_ && has_work());
            });
            if (closing_ && changes_.empty()) {
                break;
            }
            busy_               = true;
            const bool computes = !closing_ && !paused_ && has_work();
            lock.unlock();
            int32_t code = guarded(PYLLAMA_CAUGHT, [&] { return step(computes); });
            lock.lock();
            if (code != 0) {
                fail(code);
            }
            for (member & one : members_) {
                news_ = one.settle() || news_;
            }
            busy_ = false;
            n_passed_ += computes;
            changed_.notify_all();
        }
        gone_ = true;
        changed_.notify_all();
    }

    void close() {
        std::unique_lock lock(mutex_);
        closing_ = true;
        changed_.notify_all();
        changed_.wait(lock, [&] { return gone_; });
    }

  private:
    bool has_work() const {
        const auto going_on = [](const member & one) { return !one.over(); };
        return failed_ == 0 &&
               (!joining_.empty() || std::any_of(members_.begin(), members_.end(), going_on));
    }

    bool goes_on() const { return busy_ || has_work(); }

    void tell() {
        for (member & one : members_) {
            one.tell(failed_ != 0);
        }
        // Those that go on stay where they are: its thread may be computing them.
        members_.remove_if([](const member & one) { return one.over(); });
        news_ = false;
    }

    // On its own thread, which alone uses the context and the members now.
    int32_t step(bool computes) {
        std::vector<change>   changes;
        std::vector<member *> computed;
        { // at once: what joins needs the changes that were wanted before it
            const std::lock_guard lock(mutex_);
            changes.swap(changes_);
            if (computes) {
                computed = choose();
            }
        }
        for (const change & one : changes) {
            if (one.copy >= 0) {
                llama_memory_seq_cp(memory_, one.seq_id, one.copy, one.begin, one.end);
            } else {
                remove(one.seq_id, one.begin, one.end);
            }
        }
        if (!computes) {
            return 0;
        }
        const int32_t code = decode(computed, true);
        if (code != 0) {
            return code;
        }
        std::vector<running_sequence *> sampling;
        for (member * one : computed) {
            one->computed();
            if (one->run()) {
                sampling.push_back(one->run());
            }
        }
        if (!sampling.empty()) {
            pyllama::sample_each_of(ctx_, sampling, n_threads_);
        }
        for (running_sequence * one : sampling) {
            if (table_) {
                one->teach(*table_);
            }
            if (one->overshot()) {
                remove(one->seq_id(), one->pos() + one->n_computed(), -1);
            }
        }
        return 0;
    }

    void remove(llama_seq_id seq_id, llama_pos begin, llama_pos end) {
        if (!llama_memory_seq_rm(memory_, seq_id, begin, end)) {
            throw std::runtime_error("the memory could not be cut back");
        }
    }

    // What goes on, and what joins it as far as there is room in a batch, in order. The lock is held.
    std::vector<member *> choose() {
        std::vector<member *> chosen;
        int32_t               n_rows = 0;

        const auto fits = [&](const member & one) { return one.n_rows() <= n_batch_ - n_rows; };
        const auto take = [&](member & one) {
            n_rows += one.n_rows();
            chosen.push_back(&one);
        };
        std::list<member> left_out;
        for (auto one = members_.begin(); one != members_.end();) {
            const auto next = std::next(one);
            if (!one->over() && fits(*one)) {
                take(*one);
            } else if (!one->over()) {
                left_out.splice(left_out.end(), members_, one);
            }
            one = next;
        }
        members_.splice(members_.begin(), left_out); // they come first in the next batch
        while (!joining_.empty() && fits(joining_.front())) {
            members_.splice(members_.end(), joining_, joining_.begin());
            take(members_.back());
        }
        return chosen;
    }

    // Drafts so many tokens at most. If more are expected, no sequence has more than the others may have.
    int32_t draft(const std::vector<member *> & chosen, int32_t most) {
        std::vector<running_sequence *> drafting;
        for (const member * one : chosen) {
            if (table_ && one->may_draft()) {
                drafting.push_back(one->run());
                drafting.back()->draft(*table_, std::min(n_draft_, most));
            }
        }
        for (int32_t each = n_draft_;; each--) {
            int32_t n_drafted = 0;
            for (running_sequence * one : drafting) {
                one->draft_at_most(static_cast<size_t>(each));
                n_drafted += static_cast<int32_t>(one->drafted().size());
            }
            if (n_drafted <= most) {
                return n_drafted;
            }
        }
    }

    // Decodes them, with drafted tokens as far as there is room for these and their outputs in one call
    // of the device.
    int32_t decode(const std::vector<member *> & chosen, bool drafts) {
        int32_t most = drafts ? n_outputs_ - static_cast<int32_t>(chosen.size()) : 0;
        int32_t n_rows = 0;
        for (const member * one : chosen) {
            n_rows += one->n_rows();
        }
        most = std::max(std::min(most, n_ubatch_ - n_rows), 0);
        rows_.clear();
        const int32_t n_drafted = draft(chosen, most);
        for (member * one : chosen) {
            one->add_to(rows_);
        }
        const int32_t code = pyllama::decode(ctx_, rows_.batch());
        // Without what is drafted it may fit.
        return code == NO_ROOM && n_drafted > 0 ? decode(chosen, false) : code;
    }

    void fail(int32_t code) {
        failed_ = code;
        kind_   = pyllama_caught();
        try {
            message_ = code == PYLLAMA_CAUGHT ? pyllama_caught_message() : pyllama_last_errors();
        } catch (const std::bad_alloc &) {
            message_.clear();
        }
    }

    llama_context * const     ctx_;
    const llama_memory_t      memory_;
    const int32_t             n_threads_;
    const int32_t             n_draft_;
    const int32_t             n_outputs_;
    const llama_vocab * const vocab_;
    const int32_t             n_batch_;
    const int32_t             n_ubatch_;

    std::mutex              mutex_;
    std::condition_variable changed_;
    std::vector<change>     changes_;
    std::list<member>       joining_;
    std::list<member>       members_;
    bool                    paused_  = true;
    bool                    busy_    = false;
    bool                    closing_ = false;
    bool                    gone_    = false;
    bool                    news_    = false;
    int32_t                 n_passed_ = 0; // batches since the last pause
    int32_t                 failed_   = 0;
    pyllama_caught_kind     kind_     = PYLLAMA_CAUGHT_NOTHING;
    std::string             message_;

    // Of its own thread.
    pyllama::batch_rows                   rows_;
    std::unique_ptr<pyllama::draft_table> table_; // null where nothing is drafted
};

} // namespace

struct pyllama_generation {
    std::shared_ptr<generation> shared; // with its thread
};

extern "C" {

pyllama_generation * guarded_generation_init(llama_context * ctx, int32_t n_threads,
                                             int32_t n_draft, int32_t n_outputs) {
    return guarded<pyllama_generation *>(nullptr, [&] {
        auto made    = std::make_unique<pyllama_generation>();
        made->shared = std::make_shared<generation>(ctx, n_threads, n_draft, n_outputs);
        pyllama::start_thread(STACK, [shared = made->shared] { shared->serve(); });
        return made.release();
    });
}

// The part, its run and all that they point to must stay until it is over, or removed.
int32_t guarded_generation_add(pyllama_generation * generation, pyllama_part * part) {
    return guarded([&] { generation->shared->add(*part); });
}

// As llama_memory_seq_rm(), and with a copy >= 0 as llama_memory_seq_cp(): before the next batch, or at once
// while it is paused.
int32_t guarded_generation_change(pyllama_generation * generation, llama_seq_id seq_id,
                                  llama_seq_id copy, llama_pos begin, llama_pos end) {
    return guarded([&] { generation->shared->add({seq_id, copy, begin, end}); });
}

int32_t guarded_generation_wait(pyllama_generation * generation, const bool * woken, double seconds) {
    return guarded(PYLLAMA_CAUGHT, [&] { return generation->shared->wait(*woken, seconds); });
}

int32_t guarded_generation_pause(pyllama_generation * generation) {
    return guarded([&] { generation->shared->pause(); });
}

int32_t guarded_generation_remove(pyllama_generation * generation, const pyllama_part * part) {
    return guarded([&] { generation->shared->remove(*part); });
}

// What was logged when a batch failed.
const char * pyllama_generation_message(const pyllama_generation * generation) {
    return generation->shared->message().c_str();
}

int32_t guarded_generation_free(pyllama_generation * generation) {
    return guarded([&] {
        const std::unique_ptr<pyllama_generation> freed(generation);
        generation->shared->close();
    });
}

} // extern "C"
