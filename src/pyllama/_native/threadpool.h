struct ggml_threadpool * guarded_threadpool_new(struct ggml_threadpool_params * params);
int32_t guarded_threadpool_free(struct ggml_threadpool * threadpool);
int32_t guarded_attach_threadpool(struct llama_context * ctx, struct ggml_threadpool * threadpool, struct ggml_threadpool * threadpool_batch);
int32_t guarded_detach_threadpool(struct llama_context * ctx);
