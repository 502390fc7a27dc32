int32_t guarded_memory_clear(llama_memory_t memory, bool data);
int32_t guarded_memory_seq_rm(llama_memory_t memory, llama_seq_id seq_id, llama_pos p0, llama_pos p1);
int32_t guarded_memory_seq_cp(llama_memory_t memory, llama_seq_id src, llama_seq_id dst, llama_pos p0, llama_pos p1);
int32_t guarded_memory_seq_keep(llama_memory_t memory, llama_seq_id seq_id);
int32_t guarded_memory_seq_add(llama_memory_t memory, llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos delta);
int32_t guarded_memory_seq_div(llama_memory_t memory, llama_seq_id seq_id, llama_pos p0, llama_pos p1, int32_t divisor);
int32_t guarded_memory_seq_pos_min(llama_memory_t memory, llama_seq_id seq_id);
int32_t guarded_memory_seq_pos_max(llama_memory_t memory, llama_seq_id seq_id);
int32_t guarded_memory_can_shift(llama_memory_t memory);
