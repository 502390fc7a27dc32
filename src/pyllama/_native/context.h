struct llama_context * guarded_init_from_model(struct llama_model * model, const struct llama_context_params * params, pyllama_interrupt * interrupt);
int32_t guarded_context_free(struct llama_context * ctx);
int32_t guarded_encode(struct llama_context * ctx, const llama_batch * batch);
int32_t guarded_decode(struct llama_context * ctx, const llama_batch * batch);
int32_t guarded_decode_token(struct llama_context * ctx, llama_token token, llama_pos pos, llama_seq_id seq_id);
float * guarded_get_logits_ith(struct llama_context * ctx, int32_t i);
int32_t guarded_set_n_threads(struct llama_context * ctx, int32_t n_threads, int32_t n_threads_batch);
int32_t guarded_synchronize(struct llama_context * ctx);
