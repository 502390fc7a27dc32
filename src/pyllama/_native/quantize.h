char * guarded_model_quantize(const char * source, const char * target, const llama_model_quantize_params * params, bool quiet, llama_progress_callback progress, void * user_data);
int32_t guarded_check_gguf(const char * path);
int32_t guarded_check_magnitude(const char * path, float limit);
pyllama_imatrix * guarded_imatrix_load(const char * path);
int32_t guarded_imatrix_free(pyllama_imatrix * imatrix);
int32_t guarded_imatrix_count(const pyllama_imatrix * imatrix);
const char * guarded_imatrix_name(const pyllama_imatrix * imatrix, int32_t index);
const float * guarded_imatrix_values(const pyllama_imatrix * imatrix, int32_t index, size_t * size);
