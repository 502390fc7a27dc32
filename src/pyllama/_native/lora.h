struct llama_adapter_lora * guarded_adapter_lora_init(struct llama_model * model, const char * path, int64_t n_expert);
int32_t guarded_adapter_lora_free(struct llama_adapter_lora * adapter);
int32_t guarded_adapter_meta_key(const struct llama_adapter_lora * adapter, int32_t index, char * buffer, size_t size);
int32_t guarded_adapter_meta_val(const struct llama_adapter_lora * adapter, int32_t index, char * buffer, size_t size);
int32_t guarded_set_adapters_lora(struct llama_context * ctx, struct llama_adapter_lora ** adapters, size_t n_adapters, float * scales);
int32_t guarded_set_adapter_cvec(struct llama_context * ctx, const float * data, size_t len, int32_t n_embd, int32_t il_start, int32_t il_end);
float * guarded_control_vector_load(const char * path, int32_t * n_layers, int32_t * n_embd);
