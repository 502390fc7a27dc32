int32_t guarded_backend_score(const char * path);
void pyllama_multiply_on(void * reg);
bool pyllama_survives(void (*work)(void *), void * argument);
