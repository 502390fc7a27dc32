void pyllama_install_samplers(const pyllama_sampler_handlers * handlers);
struct llama_sampler * guarded_sampler_init_python(uint64_t id, const char * name);
