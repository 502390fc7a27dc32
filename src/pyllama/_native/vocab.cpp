#include "deep_stack.hpp"
#include "guard.hpp"
#include "long_text.hpp"
#include "tokenizer.hpp"

#include <algorithm>
#include <array>
#include <set>

using pyllama::byte_range;
using pyllama::guarded;

namespace {

using tokens_of_text = std::vector<llama_token>;

void append(tokens_of_text & tokens, const llama_vocab * vocab, std::string_view text,
            bool add_special) {
    const auto size = static_cast<int32_t>(text.size());
    const auto call = [&](llama_token * room, size_t n) {
        const int32_t count = llama_tokenize(vocab, text.data(), size, room,
                                             static_cast<int32_t>(n), add_special, false);
        if (count == INT32_MIN) {
            throw std::length_error("it has more tokens than llama.cpp counts");
        }
        return count;
    };
    const size_t before = tokens.size();
    tokens.resize(before + text.size() + 8); // hardly a tokenizer makes more tokens than bytes
    int32_t count = call(tokens.data() + before, text.size() + 8);
    if (count < 0) {
        tokens.resize(before + static_cast<size_t>(-count));
        count = call(tokens.data() + before, tokens.size() - before);
    }
    tokens.resize(before + static_cast<size_t>(count));
}

// Text in which no special token is named that counts.
void append_text(tokens_of_text & tokens, const llama_vocab * vocab,
                 const pyllama_tokenizer & tokenizer, std::string_view text) {
    if (!tokenizer.splits) {
        append(tokens, vocab, text, false);
        return;
    }
    auto cuts = pyllama::splitting_cuts(tokenizer.pre, text);
    size_t begin = 0;
    cuts.push_back(text.size());
    for (const size_t cut : cuts) {
        const std::string_view part = text.substr(begin, cut - begin);
        pyllama::run_with_stack(pyllama::splitting_stack(part),
                                [&] { append(tokens, vocab, part, false); });
        begin = cut;
    }
}

// The same, though some tokenizers make control tokens of text that names them: such a name is
// taken apart. Those of the UGM type do not, and have that for unknown text anywhere.
void append_plain(tokens_of_text & tokens, const llama_vocab * vocab,
                  const pyllama_tokenizer & tokenizer, std::string_view text) {
    const size_t before = tokens.size();
    append_text(tokens, vocab, tokenizer, text);
    if (llama_vocab_type(vocab) == LLAMA_VOCAB_TYPE_UGM) {
        return;
    }
    std::set<llama_token> looked_for;
    const auto            forged = std::find_if(
        tokens.begin() + static_cast<std::ptrdiff_t>(before), tokens.end(), [&](llama_token token) {
            return tokenizer.special.is_control(token) && looked_for.insert(token).second &&
                   tokenizer.special.is_named(token, text);
        });
    if (forged == tokens.end()) {
        return;
    }
    const std::string & name = tokenizer.special.text(*forged);
    tokens.resize(before);
    size_t begin = 0;
    for (size_t at = text.find(name); at != std::string_view::npos; at = text.find(name, at + 1)) {
        size_t cut = at + 1;
        while ((static_cast<unsigned char>(text[cut]) & 0xC0) == 0x80) {
            cut++;
        }
        append_plain(tokens, vocab, tokenizer, text.substr(begin, cut - begin));
        begin = cut;
    }
    append_plain(tokens, vocab, tokenizer, text.substr(begin));
}

// llama.cpp's RWKV tokenizer goes back to the beginning of the text, for ever, where no token is the
// beginning of those that it looked for.
void check_rwkv(const llama_vocab * vocab) {
    std::array<bool, 256> first{};
    std::array<bool, 256> alone{};
    for (llama_token token = 0; token < llama_vocab_n_tokens(vocab); token++) {
        char          byte;
        const int32_t length = llama_token_to_piece(vocab, token, &byte, 1, 0, true);
        if (length == 1) {
            alone[static_cast<unsigned char>(byte)] = true;
        } else if (length < 0) {
            std::string piece(static_cast<size_t>(-length), '\0');
            llama_token_to_piece(vocab, token, piece.data(), -length, 0, true);
            first[static_cast<unsigned char>(piece[0])] = true;
        }
    }
    for (size_t byte = 0; byte < first.size(); byte++) {
        if (first[byte] && !alone[byte]) {
            throw std::invalid_argument("its vocabulary has tokens that begin with the byte " +
                                        std::to_string(byte) + ", and none that is this byte");
        }
    }
}

} // namespace

namespace pyllama {

std::vector<llama_token> tokens_of(const llama_vocab * vocab, const pyllama_tokenizer & tokenizer,
                                   std::string_view text, bool parse_special,
                                   const std::vector<byte_range> & literal) {
    tokens_of_text tokens;
    for (const auto & fragment : tokenizer.special.partition(text, parse_special, literal)) {
        if (fragment.token != LLAMA_TOKEN_NULL) {
            tokens.push_back(fragment.token);
            continue;
        }
        const auto [begin, end]       = fragment.text;
        const std::string_view part   = text.substr(begin, end - begin);
        const size_t           before = tokens.size();
        if (!tokenizer.kept.find(part, tokens)) {
            append_plain(tokens, vocab, tokenizer, part);
            tokenizer.kept.keep(part, tokens, before);
        }
    }
    return tokens;
}

} // namespace pyllama

extern "C" {

// pre: the name of the pre-tokenizer that replaces the file's, or NULL: the metadata that llama.cpp
// keeps of a model are those of its file, whatever was put in their place when it was loaded.
pyllama_tokenizer * guarded_tokenizer_init(const llama_model * model, const char * pre) {
    return guarded<pyllama_tokenizer *>(nullptr, [&] {
        const llama_vocab * vocab = llama_model_get_vocab(model);
        if (llama_vocab_type(vocab) == LLAMA_VOCAB_TYPE_RWKV) {
            check_rwkv(vocab);
        }
        char own[64] = ""; // the longest that means something here is shorter
        llama_model_meta_val_str(model, "tokenizer.ggml.pre", own, sizeof(own));
        return new pyllama_tokenizer{pyllama::special_tokens(vocab), pre == nullptr ? own : pre,
                                     llama_vocab_type(vocab) == LLAMA_VOCAB_TYPE_BPE};
    });
}

int32_t guarded_tokenizer_free(pyllama_tokenizer * tokenizer) {
    return guarded([&] { delete tokenizer; });
}

// literal: begins and ends of the ranges in bytes that name no control token, sorted. The tokens
// are the caller's, to be given to pyllama_free(). Adds what the vocabulary is configured to want
// before the text, and after it.
int32_t guarded_tokenize(const llama_vocab * vocab, const pyllama_tokenizer * tokenizer,
                         const char * text, size_t length, const size_t * literal,
                         size_t n_literal, bool add_before, bool add_after, bool parse_special,
                         llama_token ** result) {
    return guarded(PYLLAMA_CAUGHT, [&]() -> int32_t {
        std::vector<byte_range> ranges;
        for (size_t i = 0; i + 1 < n_literal; i += 2) {
            ranges.push_back({literal[i], literal[i + 1]});
        }
        tokens_of_text added;
        if (add_before || add_after) {
            append(added, vocab, "", true); // asserts that the vocabulary has them
        }
        const auto type = llama_vocab_type(vocab);
        // llama_tokenize() adds BOS to these in any case.
        const bool   bos      = type == LLAMA_VOCAB_TYPE_WPM || llama_vocab_get_add_bos(vocab);
        const size_t n_before = std::min(added.size(), size_t(bos));

        tokens_of_text tokens;
        if (add_before) {
            tokens.assign(added.begin(), added.begin() + static_cast<std::ptrdiff_t>(n_before));
        }
        const auto own =
            pyllama::tokens_of(vocab, *tokenizer, {text, length}, parse_special, ranges);
        tokens.insert(tokens.end(), own.begin(), own.end());
        if (add_after) {
            tokens.insert(tokens.end(), added.begin() + static_cast<std::ptrdiff_t>(n_before),
                          added.end());
        }
        if (tokens.size() > INT32_MAX) {
            throw std::length_error("it has more tokens than llama.cpp counts");
        }
        const size_t size = tokens.size() * sizeof(llama_token);
        *result           = static_cast<llama_token *>(std::malloc(std::max(size, size_t(1))));
        if (!*result) {
            throw std::bad_alloc();
        }
        std::copy(tokens.begin(), tokens.end(), *result);
        return static_cast<int32_t>(tokens.size());
    });
}

// The first so many of the places at which a text must be broken so that it names no control token
// (see special_tokens::breaks), and how many there are.
int32_t guarded_tokenizer_breaks(const pyllama_tokenizer * tokenizer, const char * text,
                                 size_t length, bool edges, size_t * places, size_t n_places) {
    return guarded(PYLLAMA_CAUGHT, [&]() -> int32_t {
        const auto found = tokenizer->special.breaks({text, length}, edges);
        std::copy_n(found.begin(), std::min(found.size(), n_places), places);
        return static_cast<int32_t>(found.size());
    });
}

int32_t guarded_detokenize(const llama_vocab * vocab, const llama_token * tokens, int32_t n_tokens,
                           char * text, int32_t text_len_max, bool remove_special,
                           bool unparse_special) {
    return guarded(PYLLAMA_CAUGHT, [&] {
        return llama_detokenize(vocab, tokens, n_tokens, text, text_len_max, remove_special,
                                unparse_special);
    });
}

int32_t guarded_token_to_piece(const llama_vocab * vocab, llama_token token, char * buffer,
                               int32_t length, int32_t lstrip, bool special) {
    return guarded(PYLLAMA_CAUGHT, [&] {
        return llama_token_to_piece(vocab, token, buffer, length, lstrip, special);
    });
}

const char * guarded_vocab_get_text(const llama_vocab * vocab, llama_token token) {
    return guarded<const char *>(nullptr, [&] { return llama_vocab_get_text(vocab, token); });
}

int32_t guarded_vocab_get_score(const llama_vocab * vocab, llama_token token, float * score) {
    return guarded([&] { *score = llama_vocab_get_score(vocab, token); });
}

int32_t guarded_vocab_get_attr(const llama_vocab * vocab, llama_token token) {
    return guarded(PYLLAMA_CAUGHT,
                   [&] { return static_cast<int32_t>(llama_vocab_get_attr(vocab, token)); });
}

int32_t guarded_vocab_is_eog(const llama_vocab * vocab, llama_token token) {
    return guarded(PYLLAMA_CAUGHT,
                   [&] { return static_cast<int32_t>(llama_vocab_is_eog(vocab, token)); });
}

int32_t guarded_vocab_is_control(const llama_vocab * vocab, llama_token token) {
    return guarded(PYLLAMA_CAUGHT,
                   [&] { return static_cast<int32_t>(llama_vocab_is_control(vocab, token)); });
}

} // extern "C"
