struct llama_model * guarded_model_load_from_file(const char * path, const struct llama_model_params * params);
int32_t guarded_model_free(struct llama_model * model);
int32_t guarded_model_desc(const struct llama_model * model, char * buffer, size_t size);
int32_t guarded_model_meta_key(const struct llama_model * model, int32_t index, char * buffer, size_t size);
int32_t guarded_model_meta_val(const struct llama_model * model, int32_t index, char * buffer, size_t size);
int32_t guarded_model_n_head(const struct llama_model * model);
int32_t guarded_model_n_head_kv(const struct llama_model * model);
const char * guarded_model_chat_template(const struct llama_model * model, const char * name);
