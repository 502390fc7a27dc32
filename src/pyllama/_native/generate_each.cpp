// Many sequences that go on by several tokens in one call: decode, sample each, decode again.
//
// Python's interpreter is not asked in between. Where its other threads keep it busy, a thread gets
// it back after milliseconds, which is longer than a GPU takes for a step.
#include "context.hpp"
#include "forced_tokens.hpp"
#include "grammar_sampler.hpp"
#include "sample_each.hpp"

#include "common/common.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <string_view>
#include <vector>

namespace {

// Tokens that may stand within a stop text, as they are no part of the text that is shown.
constexpr int WITHOUT_TEXT = LLAMA_TOKEN_ATTR_CONTROL | LLAMA_TOKEN_ATTR_UNKNOWN;

// One of the sequences, while it goes on.
class sequence {
  public:
    sequence(pyllama_run & run, const llama_vocab * vocab)
        : run_(run), vocab_(vocab), grammar_(pyllama::grammar_of(*run.draw.chain)),
          end_(run.text, run.text_size) {
        for (int32_t i = 0; i < run.n_stops; i++) {
            stops_.emplace_back(run.stops[i], run.stop_sizes[i]);
            longest_ = std::max(longest_, run.stop_sizes[i]);
        }
    }

    bool      goes_on() const { return goes_on_ && run_.draw.token >= 0; }
    int32_t   seq_id() const { return run_.seq_id; }
    llama_pos pos() const { return run_.pos; } // of its first token
    int32_t   n_computed() const { return run_.n_computed; }
    int32_t   n_tokens() const { return run_.n_tokens; }

    llama_token token(int32_t i) const { return run_.tokens[i]; }

    pyllama_draw & draw() { return run_.draw; }

    void computed() { run_.n_computed = run_.n_tokens; }

    int32_t sample(const float * logits, int32_t n_vocab) {
        const int32_t token = pyllama::sample(*run_.draw.chain, logits, n_vocab);
        if (token < 0) {
            return token;
        }
        write(token);
        bool taken = true;
        if (goes_on_ && grammar_ != nullptr && run_.forcing.tokenizer != nullptr) {
            taken = write_forced();
        }
        run_.bounded = grammar_ != nullptr && pyllama::was_bounded(grammar_);
        return taken ? token : PYLLAMA_TOKEN_REFUSED;
    }

  private:
    void write(llama_token token) {
        const bool bound = grammar_ != nullptr && run_.eog >= 0;
        run_.may_end[run_.n_tokens] = bound && pyllama::grammar_allows(grammar_, run_.eog);
        run_.tokens[run_.n_tokens++] = token;
        run_.at_stop = stops_with(token);
        goes_on_ = run_.n_tokens < run_.n_max && !run_.at_stop && !llama_vocab_is_eog(vocab_, token);
    }

    // Whether the chain took what is forced.
    bool write_forced() {
        for (const llama_token token : pyllama::forced_tokens(grammar_, vocab_, run_.forcing)) {
            if (pyllama::accept(*run_.draw.chain, token) != 0) {
                return false;
            }
            write(token);
            if (!goes_on_) {
                return true;
            }
        }
        // A further forced text must fit behind a token, or be left to the end of the answer.
        goes_on_ = run_.n_tokens + run_.forcing.most < run_.n_room || run_.n_room == run_.n_max;
        return true;
    }

    // Whether one of its stop texts may have come: Python looks closer.
    bool stops_with(llama_token token) {
        if (stops_.empty()) {
            return false;
        }
        end_ += common_token_to_piece(vocab_, token);
        const bool found = std::any_of(stops_.begin(), stops_.end(), [&](std::string_view stop) {
            return end_.find(stop) != std::string::npos;
        });
        end_.erase(0, end_.size() - std::min(end_.size(), longest_));
        return found || (llama_vocab_get_attr(vocab_, token) & WITHOUT_TEXT) != 0;
    }

    pyllama_run &       run_;
    const llama_vocab * vocab_;
    llama_sampler *     grammar_;
    std::string         end_; // of its text
    size_t              longest_ = 0;
    bool                goes_on_ = true;

    std::vector<std::string_view> stops_;
};

// A batch of the tokens of each sequence that are not in memory.
class next_tokens {
  public:
    llama_batch of(const std::vector<sequence *> & sequences) {
        tokens_.clear(), pos_.clear(), seq_id_.clear(), rows_.clear(), outputs_.clear();
        for (sequence * one : sequences) {
            for (int32_t i = one->n_computed(); i < one->n_tokens(); i++) {
                tokens_.push_back(one->token(i));
                pos_.push_back(one->pos() + i);
                seq_id_.push_back(one->seq_id());
                outputs_.push_back(i + 1 == one->n_tokens());
            }
            one->draw().output = static_cast<int32_t>(tokens_.size()) - 1;
        }
        for (llama_seq_id & id : seq_id_) {
            rows_.push_back(&id);
        }
        n_seq_id_.assign(tokens_.size(), 1);
        return {static_cast<int32_t>(tokens_.size()), tokens_.data(), nullptr, pos_.data(),
                n_seq_id_.data(), rows_.data(), outputs_.data()};
    }

  private:
    std::vector<llama_token>    tokens_;
    std::vector<llama_pos>      pos_;
    std::vector<llama_seq_id>   seq_id_;
    std::vector<llama_seq_id *> rows_;
    std::vector<int8_t>         outputs_;
    std::vector<int32_t>        n_seq_id_;
};

void sample(llama_context * ctx, const std::vector<sequence *> & sequences, int32_t n_threads) {
    const auto at = [&](int32_t i) -> sequence & { return *sequences[static_cast<size_t>(i)]; };
    const int32_t missing = pyllama::sample_each(
        ctx, static_cast<int32_t>(sequences.size()), n_threads,
        [&](int32_t i) -> pyllama_draw & { return at(i).draw(); },
        [&](int32_t i, const float * logits, int32_t n_vocab) {
            return at(i).sample(logits, n_vocab);
        });
    if (missing) {
        throw std::runtime_error("the batch gave no output " +
                                 std::to_string(at(missing - 1).draw().output));
    }
}

} // namespace

extern "C" {

// max_paused: how many runs may have paused, and wait for the others, before all are handed back.
// n_steps: decodes that were done. Where a later one fails, the runs hold what was sampled before it.
int32_t guarded_generate_each(llama_context * ctx, const llama_batch * batch, pyllama_run * runs,
                              int32_t n_runs, int32_t max_steps, int32_t max_paused, double seconds,
                              int32_t n_threads, int32_t * n_steps) {
    using clock = std::chrono::steady_clock;
    return pyllama::guarded(PYLLAMA_CAUGHT, [&]() -> int32_t {
        const auto begun = clock::now();
        const auto left  = [&] {
            return std::chrono::duration<double>(clock::now() - begun).count() < seconds;
        };
        const llama_vocab *   vocab = llama_model_get_vocab(llama_get_model(ctx));
        std::vector<sequence> all;
        all.reserve(static_cast<size_t>(n_runs));
        for (int32_t i = 0; i < n_runs; i++) {
            all.emplace_back(runs[i], vocab);
        }
        std::vector<sequence *> going_on;
        for (sequence & one : all) {
            going_on.push_back(&one);
        }
        next_tokens  next;
        const size_t fewest = all.size() - std::min(all.size(), static_cast<size_t>(max_paused));
        llama_batch  rows   = *batch;
        int32_t      code   = 0;
        while (true) {
            code = pyllama::decode(ctx, rows);
            if (code != 0) {
                break;
            }
            ++*n_steps;
            for (sequence * one : going_on) {
                one->computed();
            }
            sample(ctx, going_on, n_threads);
            going_on.erase(std::remove_if(going_on.begin(), going_on.end(),
                                          [](const sequence * one) { return !one->goes_on(); }),
                           going_on.end());
            if (*n_steps >= max_steps || going_on.empty() || going_on.size() < fewest || !left()) {
                break;
            }
            rows = next.of(going_on);
            if (static_cast<uint32_t>(rows.n_tokens) > llama_n_batch(ctx)) {
                break;
            }
        }
        return code;
    });
}

} // extern "C"
