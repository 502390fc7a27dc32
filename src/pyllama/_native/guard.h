enum pyllama_caught_kind pyllama_caught(void);
const char * pyllama_caught_message(void);
const char * pyllama_last_errors(void);
void pyllama_free(void * memory);
void pyllama_install(void (*on_log)(int32_t level, const char * line), bool (*on_poll)(void));
void pyllama_uninstall(void);
void pyllama_set_log_level(int32_t level);
const char * pyllama_upstream_commit(void);
bool pyllama_should_stop(void * data);
