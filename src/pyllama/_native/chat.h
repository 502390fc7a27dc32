pyllama_chat * guarded_chat_init(const char * source, const char * bos, const char * eos);
int32_t guarded_chat_free(pyllama_chat * chat);
char * guarded_chat_describe(const pyllama_chat * chat);
char * guarded_chat_render(const pyllama_chat * chat, const char * inputs);
char * guarded_chat_apply(const pyllama_chat * chat, const char * inputs);
pyllama_chat_parser * guarded_chat_parser_init(const char * params);
int32_t guarded_chat_parser_free(pyllama_chat_parser * parser);
char * guarded_chat_parse(const pyllama_chat_parser * parser, const char * text, size_t length, bool partial);
char * guarded_chat_compute_diffs(const char * previous, const char * message);
