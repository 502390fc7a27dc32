#include "context.hpp"

#include "apart.hpp"
#include "compute_threads.hpp"
#include "guard_log.hpp"
#include "src/llama-context.h"
#include "src/llama-cparams.h"
#include "src/llama-model.h"

using pyllama::guarded;
using pyllama::guarded_apart;
using pyllama::guarded_free;
using pyllama::no_memory;

namespace {

// What ggml_backend_sched_new() takes at least, in one piece, after the memory for keys and values is
// had: without it all of that would have to be left.
constexpr size_t LEAST_OF_A_SCHEDULER = 1024 * 30 * 2 * sizeof(ggml_tensor);

// What llama_encode() and llama_decode() return when the abort callback stopped them.
constexpr int32_t ABORTED = 2;

} // namespace

int32_t pyllama::decode(llama_context * ctx, const llama_batch & batch) {
    require_compute_threads(batch.n_tokens > 1 ? llama_n_threads_batch(ctx) : llama_n_threads(ctx));
    return compute(ABORTED, [&] { return llama_decode(ctx, batch); });
}

extern "C" {

llama_context * guarded_init_from_model(llama_model * model, const llama_context_params * params,
                                        pyllama_interrupt * interrupt, int32_t n_ctx_train) {
    return guarded_apart<llama_context *>(nullptr, no_memory::strands, [&] {
        llama_context_params with_interrupt = *params;
        with_interrupt.abort_callback       = pyllama_should_stop;
        with_interrupt.abort_callback_data  = interrupt;
        pyllama::require_memory(LEAST_OF_A_SCHEDULER);
        llama_context * context = llama_init_from_model(model, with_interrupt);
        // With YaRN it changes what the model says of its training, which is all its contexts' and
        // is saved with it. The given number is restored rather than the one from before: several
        // threads may be here.
        model->hparams.n_ctx_train = static_cast<uint32_t>(n_ctx_train);
        return context;
    });
}

int32_t guarded_context_free(llama_context * ctx) {
    return guarded_free([&] { llama_free(ctx); });
}

int32_t guarded_context_shape(const llama_context * ctx, pyllama_context_shape * shape) {
    return guarded([&] {
        const llama_model *   model = llama_get_model(ctx);
        const llama_rope_type rope  = llama_model_rope_type(model);
        const bool            mrope = rope == LLAMA_ROPE_TYPE_MROPE || rope == LLAMA_ROPE_TYPE_IMROPE;

        shape->n_embd_inp     = llama_model_n_embd_inp(model);
        shape->n_embd_out     = llama_model_n_embd_out(model);
        shape->n_cls_out      = static_cast<int32_t>(llama_model_n_cls_out(model));
        shape->n_pos_per_embd = mrope ? GGML_MROPE_SECTIONS : 1;
    });
}

// Whether attention is computed by flash attention, as it was decided: 0 or 1.
int32_t guarded_flash_attn(const llama_context * ctx) {
    return guarded(PYLLAMA_CAUGHT,
                   [&] { return static_cast<int32_t>(ctx->get_cparams().flash_attn); });
}

int32_t guarded_encode(llama_context * ctx, const llama_batch * batch) {
    return guarded(PYLLAMA_CAUGHT, [&] {
        pyllama::require_compute_threads(llama_n_threads_batch(ctx));
        return pyllama::compute(ABORTED, [&] { return llama_encode(ctx, *batch); });
    });
}

int32_t guarded_decode(llama_context * ctx, const llama_batch * batch) {
    return guarded(PYLLAMA_CAUGHT, [&] { return pyllama::decode(ctx, *batch); });
}

int32_t guarded_decode_token(llama_context * ctx, llama_token token, llama_pos pos,
                             llama_seq_id seq_id) {
    return guarded(PYLLAMA_CAUGHT, [&] {
        int32_t        n_seq_id = 1;
        llama_seq_id * seq_ids  = &seq_id;
        int8_t         output   = 1;
        return pyllama::decode(ctx, {1, &token, nullptr, &pos, &n_seq_id, &seq_ids, &output});
    });
}

float * guarded_get_logits(llama_context * ctx) {
    return guarded<float *>(nullptr, [&] { return llama_get_logits(ctx); });
}

float * guarded_get_logits_ith(llama_context * ctx, int32_t i) {
    return guarded<float *>(nullptr, [&] { return llama_get_logits_ith(ctx, i); });
}

float * guarded_get_embeddings(llama_context * ctx) {
    return guarded<float *>(nullptr, [&] { return llama_get_embeddings(ctx); });
}

float * guarded_get_embeddings_ith(llama_context * ctx, int32_t i) {
    return guarded<float *>(nullptr, [&] { return llama_get_embeddings_ith(ctx, i); });
}

float * guarded_get_embeddings_seq(llama_context * ctx, llama_seq_id seq_id) {
    return guarded<float *>(nullptr, [&] { return llama_get_embeddings_seq(ctx, seq_id); });
}

int32_t guarded_set_embeddings(llama_context * ctx, bool embeddings) {
    return guarded([&] { llama_set_embeddings(ctx, embeddings); });
}

int32_t guarded_set_causal_attn(llama_context * ctx, bool causal_attn) {
    return guarded([&] { llama_set_causal_attn(ctx, causal_attn); });
}

int32_t guarded_set_n_threads(llama_context * ctx, int32_t n_threads, int32_t n_threads_batch) {
    return guarded([&] { llama_set_n_threads(ctx, n_threads, n_threads_batch); });
}

int32_t guarded_synchronize(llama_context * ctx) {
    return guarded([&] { llama_synchronize(ctx); });
}

int32_t guarded_perf_context_reset(llama_context * ctx) {
    return guarded([&] { llama_perf_context_reset(ctx); });
}

} // extern "C"
