int32_t guarded_tokenize(const struct llama_vocab * vocab, const char * text, int32_t text_len, llama_token * tokens, int32_t n_tokens_max, bool add_special, bool parse_special);
int32_t guarded_detokenize(const struct llama_vocab * vocab, const llama_token * tokens, int32_t n_tokens, char * text, int32_t text_len_max, bool remove_special, bool unparse_special);
int32_t guarded_token_to_piece(const struct llama_vocab * vocab, llama_token token, char * buffer, int32_t length, int32_t lstrip, bool special);
const char * guarded_vocab_get_text(const struct llama_vocab * vocab, llama_token token);
int32_t guarded_vocab_get_score(const struct llama_vocab * vocab, llama_token token, float * score);
int32_t guarded_vocab_get_attr(const struct llama_vocab * vocab, llama_token token);
int32_t guarded_vocab_is_eog(const struct llama_vocab * vocab, llama_token token);
int32_t guarded_vocab_is_control(const struct llama_vocab * vocab, llama_token token);
