int32_t guarded_backend_init(const char * folder);
int32_t guarded_dev_memory(ggml_backend_dev_t device, size_t * free, size_t * total);
const struct ggml_backend_feature * guarded_reg_features(ggml_backend_reg_t reg);
int32_t guarded_cpu_math_cores(void);
