#include "guard.hpp"

using pyllama::guarded;

extern "C" {

int32_t guarded_tokenize(const llama_vocab * vocab, const char * text, int32_t text_len,
                         llama_token * tokens, int32_t n_tokens_max, bool add_special,
                         bool parse_special) {
    return guarded(PYLLAMA_CAUGHT, [&] {
        return llama_tokenize(vocab, text, text_len, tokens, n_tokens_max, add_special,
                              parse_special);
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
