pyllama_generation * guarded_generation_init(struct llama_context * ctx, int32_t n_threads, int32_t n_draft, int32_t n_outputs);
int32_t guarded_generation_add(pyllama_generation * generation, pyllama_part * part);
int32_t guarded_generation_change(pyllama_generation * generation, llama_seq_id seq_id, llama_seq_id copy, llama_pos begin, llama_pos end);
int32_t guarded_generation_wait(pyllama_generation * generation, const bool * woken, double seconds);
int32_t guarded_generation_pause(pyllama_generation * generation);
int32_t guarded_generation_remove(pyllama_generation * generation, const pyllama_part * part);
const char * pyllama_generation_message(const pyllama_generation * generation);
int32_t guarded_generation_free(pyllama_generation * generation);
