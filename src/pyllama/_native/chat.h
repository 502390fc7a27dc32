pyllama_chat * guarded_chat_init(const struct llama_model * model, const char * source);
int32_t guarded_chat_free(pyllama_chat * chat);
char * guarded_chat_source(const pyllama_chat * chat);
char * guarded_chat_capabilities(const pyllama_chat * chat);
char * guarded_chat_apply(const pyllama_chat * chat, const char * inputs);
