// A sequence that goes on by tokens which its own chain samples (generate_each.cpp, generation.cpp).
#pragma once

#include "drafts.hpp"
#include "forced_tokens.hpp"
#include "grammar_sampler.hpp"
#include "sample_each.hpp"

#include "common/common.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace pyllama {

// Tokens that may stand within a stop text, as they are not part of the text that is shown.
inline constexpr int WITHOUT_TEXT = LLAMA_TOKEN_ATTR_CONTROL | LLAMA_TOKEN_ATTR_UNKNOWN;

// One of the sequences, while it goes on.
class running_sequence {
  public:
    running_sequence(pyllama_run & run, const llama_vocab * vocab)
        : run_(run), vocab_(vocab), grammar_(grammar_of(*run.draw.chain)),
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

    const llama_token * tokens() const { return run_.tokens; }

    pyllama_draw & draw() { return run_.draw; }

    // Tokens that may follow, which are computed in the same batch as the last ones.
    const std::vector<llama_token> & drafted() const { return drafted_; }

    // Has at most so many tokens drafted for the next batch. What would be its last is not among them:
    // that is never computed.
    void draft(const draft_table & table, int32_t most) {
        drafted_ = table.expected(last_, std::min(most, run_.n_max - run_.n_tokens - 1));
        const auto ends = [&](llama_token token) { return llama_vocab_is_eog(vocab_, token); };
        drafted_.erase(std::find_if(drafted_.begin(), drafted_.end(), ends), drafted_.end());
        n_kept_ = 0;
    }

    void draft_at_most(size_t most) { drafted_.resize(std::min(drafted_.size(), most)); }

    // Tokens before its first one.
    void begin_after(const llama_token * tokens, int32_t n) {
        last_.assign(tokens + std::max(n - int32_t(draft_table::N_LAST), 0), tokens + n);
    }

    // Tells a table of the tokens since the last time.
    void teach(draft_table & table) {
        for (; n_taught_ < run_.n_tokens; n_taught_++) {
            last_.push_back(run_.tokens[n_taught_]);
            table.learn(last_);
            if (last_.size() > draft_table::N_LAST) {
                last_.erase(last_.begin());
            }
        }
    }

    // Its rows are in memory. So are those of drafted tokens, behind them.
    void computed() { run_.n_computed = run_.n_tokens; }

    // Whether there are tokens in memory behind those that were computed, since others were sampled.
    bool overshot() const { return n_kept_ < drafted_.size(); }

    // Samples from the output of the last token, and on from those of drafted tokens, as long as these
    // are what was sampled.
    int32_t sample(const float * const * logits, int32_t n_vocab) {
        int32_t token = sample_next(logits[0], n_vocab);
        while (token >= 0 && keep_drafted()) {
            token = sample_next(logits[n_kept_], n_vocab);
        }
        return token;
    }

  private:
    int32_t sample_next(const float * logits, int32_t n_vocab) {
        const int32_t token = pyllama::sample(*run_.draw.chain, logits, n_vocab);
        if (token < 0) {
            return token;
        }
        write(token);
        bool taken = true;
        if (goes_on_ && grammar_ != nullptr && run_.forcing.tokenizer != nullptr) {
            taken = write_forced();
        }
        run_.bounded = grammar_ != nullptr && was_bounded(grammar_);
        return taken ? token : PYLLAMA_TOKEN_REFUSED;
    }

    // Counts the new tokens that are in memory, as they were drafted. Returns whether all are, and it
    // goes on: then there is an output to sample from.
    bool keep_drafted() {
        const int32_t end = goes_on_ ? run_.n_tokens : run_.n_tokens - 1; // the last is never computed
        while (run_.n_computed < end && n_kept_ < drafted_.size() &&
               run_.tokens[run_.n_computed] == drafted_[n_kept_]) {
            run_.n_computed++;
            n_kept_++;
        }
        return goes_on_ && run_.n_computed == run_.n_tokens;
    }

    void write(llama_token token) {
        const bool bound = grammar_ != nullptr && run_.eog >= 0;
        run_.may_end[run_.n_tokens] = bound && grammar_allows(grammar_, run_.eog);
        run_.tokens[run_.n_tokens++] = token;
        run_.at_stop = stops_with(token);
        goes_on_ = run_.n_tokens < run_.n_max && !run_.at_stop && !llama_vocab_is_eog(vocab_, token);
    }

    // Whether the chain took what is forced.
    bool write_forced() {
        for (const llama_token token : forced_tokens(grammar_, vocab_, run_.forcing)) {
            if (accept(*run_.draw.chain, token) != 0) {
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

    std::vector<llama_token> drafted_;
    size_t                   n_kept_   = 0; // of the drafted, those that were sampled
    std::vector<llama_token> last_;         // of its tokens, with those before it
    int32_t                  n_taught_ = 0;
};

// The rows of a batch of tokens.
class batch_rows {
  public:
    void clear() { tokens_.clear(), pos_.clear(), seq_id_.clear(), outputs_.clear(); }

    int32_t size() const { return static_cast<int32_t>(tokens_.size()); }

    // The last n_outputs of the tokens have an output.
    void add(const llama_token * tokens, int32_t n, llama_pos pos, llama_seq_id seq_id,
             int32_t n_outputs) {
        for (int32_t i = 0; i < n; i++) {
            tokens_.push_back(tokens[i]);
            pos_.push_back(pos + i);
            seq_id_.push_back(seq_id);
            outputs_.push_back(i >= n - n_outputs);
        }
    }

    // The tokens of a sequence that are not in memory, and those that are drafted.
    void add(running_sequence & one) {
        const int32_t begin = one.n_computed();
        add(one.tokens() + begin, one.n_tokens() - begin, one.pos() + begin, one.seq_id(), 1);
        one.draw().output  = size() - 1;
        const auto drafted = static_cast<int32_t>(one.drafted().size());
        add(one.drafted().data(), drafted, one.pos() + one.n_tokens(), one.seq_id(), drafted);
    }

    llama_batch batch() {
        rows_.clear();
        for (llama_seq_id & id : seq_id_) {
            rows_.push_back(&id);
        }
        n_seq_id_.assign(tokens_.size(), 1);
        return {size(),         tokens_.data(), nullptr,         pos_.data(),
                n_seq_id_.data(), rows_.data(),   outputs_.data()};
    }

  private:
    std::vector<llama_token>    tokens_;
    std::vector<llama_pos>      pos_;
    std::vector<llama_seq_id>   seq_id_;
    std::vector<llama_seq_id *> rows_;
    std::vector<int8_t>         outputs_;
    std::vector<int32_t>        n_seq_id_;
};

// Has each sample from its outputs of the last decode, on several threads.
inline void sample_each_of(llama_context * ctx, const std::vector<running_sequence *> & sequences,
                           int32_t n_threads) {
    const auto at = [&](int32_t i) -> running_sequence & { return *sequences[static_cast<size_t>(i)]; };
    const auto n  = static_cast<int32_t>(sequences.size());
    // Asking a context for outputs waits for them, and puts them in order: no work for several.
    std::vector<std::vector<const float *>> logits;
    for (int32_t i = 0; i < n; i++) {
        const int32_t first = at(i).draw().output;
        const auto    last  = first + static_cast<int32_t>(at(i).drafted().size());
        logits.emplace_back();
        for (int32_t output = first; output <= last; output++) {
            logits.back().push_back(llama_get_logits_ith(ctx, output));
            if (!logits.back().back()) {
                throw std::runtime_error("the batch gave no output " + std::to_string(output));
            }
        }
    }
    const int32_t n_vocab = vocabulary_size(ctx);
    draw_each(
        n, n_threads, [&](int32_t i) -> pyllama_draw & { return at(i).draw(); },
        [&](int32_t i) { return at(i).sample(logits[static_cast<size_t>(i)].data(), n_vocab); });
}

} // namespace pyllama
