char * guarded_grammar_check(const struct llama_vocab * vocab, const char * source, const char * root);
int32_t guarded_grammar_allowed(struct llama_sampler * grammar, const llama_token * tokens, size_t n_tokens, bool * allowed);
char * guarded_grammar_check_pattern(const char * pattern);
struct llama_sampler * guarded_sampler_init_grammar(const struct llama_vocab * vocab, const pyllama_tokens * all, const char * source, const char * root, const char ** patterns, size_t n_patterns, const llama_token * tokens, size_t n_tokens, size_t stack_per_byte);
char * guarded_grammar_forced_text(const struct llama_sampler * grammar);
int32_t guarded_grammar_eog(const struct llama_vocab * vocab);
pyllama_tokens * guarded_tokens_init(const struct llama_vocab * vocab);
int32_t guarded_tokens_free(pyllama_tokens * tokens);
size_t guarded_tokens_longest(const pyllama_tokens * tokens);
