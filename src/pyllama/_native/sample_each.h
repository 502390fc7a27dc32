int32_t guarded_sample_each(struct llama_context * ctx, pyllama_draw * draws, int32_t n_draws, int32_t n_threads);
