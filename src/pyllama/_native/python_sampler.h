void pyllama_install_samplers(const pyllama_sampler_handlers * handlers);
void pyllama_uninstall_samplers(void);
struct llama_sampler * guarded_sampler_init_python(uint64_t id, const char * name);
