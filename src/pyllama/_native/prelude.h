// What the declarations in this folder stand on. Read by the C compiler that builds cffi's
// generated binding, and by every C++ source here.
//
// The object headers hold prototypes and nothing else, without include guards or directives,
// because cffi reads them as well.
#ifndef PYLLAMA_PRELUDE_H
#define PYLLAMA_PRELUDE_H

#include "ggml-backend.h"
#include "llama.h"

// What a guarded call returns when it caught something; see guard.hpp.
#define PYLLAMA_CAUGHT INT32_MIN

enum pyllama_caught_kind {
    PYLLAMA_CAUGHT_NOTHING,
    PYLLAMA_CAUGHT_EXCEPTION,     // a C++ exception left llama.cpp
    PYLLAMA_CAUGHT_ASSERTION,     // a GGML_ASSERT or GGML_ABORT fired
    PYLLAMA_CAUGHT_OUT_OF_MEMORY, // std::bad_alloc
    PYLLAMA_CAUGHT_REFUSED,       // memory or threads were missing before anything was changed
    PYLLAMA_CAUGHT_ENDING,        // the interpreter is ending
};

typedef struct pyllama_interrupt pyllama_interrupt;

// Why a chain gave no token, where one is expected; tokens are 0 or more.
enum pyllama_refusal {
    PYLLAMA_NO_OUTPUT     = -1, // the last decode computed none there
    PYLLAMA_NO_CANDIDATE  = -2, // the samplers left none
    PYLLAMA_BAD_LOGITS    = -3, // NaN, or infinite
    PYLLAMA_TOKEN_REFUSED = -4, // a grammar does not let it follow
    PYLLAMA_GRAMMAR_STUCK = -5, // a grammar lets no token follow
};

// What a state must agree with before llama.cpp may read it.
typedef struct pyllama_state_expected {
    int32_t      n_vocab;
    uint32_t     n_seq_max;
    uint32_t     n_ctx_seq;
    bool         whole;          // of the context, not of one sequence
    bool         partial_only;   // LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
    bool         kv_unified;
    bool         cell_positions; // cells hold several positions and a token (M-RoPE)
    bool         attention;
    bool         recurrent;
} pyllama_state_expected;

// Sizes that reading and writing a context's arrays needs.
typedef struct pyllama_context_shape {
    int32_t n_embd_inp;
    int32_t n_embd_out;
    int32_t n_cls_out;
    int32_t n_pos_per_embd;
} pyllama_context_shape;

typedef struct pyllama_chat pyllama_chat;
typedef struct pyllama_chat_parser pyllama_chat_parser;
typedef struct pyllama_imatrix pyllama_imatrix;

// What a model and a context would take of a device's memory, in bytes; host memory has no device.
typedef struct pyllama_device_memory {
    ggml_backend_dev_t device;
    int64_t            total;
    int64_t            free;
    uint64_t           model;
    uint64_t           context;
    uint64_t           compute;
} pyllama_device_memory;

typedef struct pyllama_tokenizer pyllama_tokenizer;
typedef struct pyllama_tokens pyllama_tokens;
typedef struct pyllama_chain pyllama_chain;

typedef struct pyllama_chain_perf {
    double  t_sample_ms;
    int32_t n_sample;
    int32_t n_resampled; // how often a grammar refused the first choice
} pyllama_chain_perf;

// What is known of a member of a chain, for a choice that needs no list of all candidates.
enum pyllama_effect {
    PYLLAMA_ANY_EFFECT,
    PYLLAMA_LOWERS,        // it makes no logit higher
    PYLLAMA_TAKES_HIGHEST, // it selects the highest logit, of several the first
};

// One chain's choice among those of a decode's outputs.
typedef struct pyllama_draw {
    pyllama_chain * chain;
    int32_t         output;
    int32_t         token;        // a pyllama_refusal if there is none, or PYLLAMA_CAUGHT
    int32_t         caught;       // then the pyllama_caught_kind,
    char            message[512]; // and what it says
} pyllama_draw;

// Which of the texts that a grammar forces are written, as their tokens.
typedef struct pyllama_forcing {
    const pyllama_tokenizer * tokenizer; // NULL where none is written
    int32_t                   fewest;    // tokens
    int32_t                   most;
    const llama_token *       never; // tokens that may not be among them
    size_t                    n_never;
} pyllama_forcing;

// A sequence that goes on after a batch (generate_each.cpp), and what was sampled for it.
typedef struct pyllama_run {
    pyllama_draw         draw;   // the first one, and then the last
    int32_t              seq_id;
    llama_pos            pos;    // of the token that is sampled first
    int32_t              n_max;  // the most tokens that it may have
    int32_t              n_room; // those that there is room for
    llama_token          eog;    // whether it may come next is told for each token; < 0: it is not
    pyllama_forcing      forcing;
    const char * const * stops;
    const size_t *       stop_sizes;
    int32_t              n_stops;
    const char *         text; // the end of what came before, where a stop text may have begun
    size_t               text_size;
    llama_token *        tokens;
    bool *               may_end;
    int32_t              n_tokens;
    int32_t              n_computed; // of the tokens, those in memory
    bool                 at_stop;    // a stop text may end with the last
    bool                 bounded;    // see was_bounded() in grammar_sampler.hpp
} pyllama_run;

typedef struct pyllama_generation pyllama_generation;

// Tokens of a sequence that join a generation (generation.cpp), and what is known of them.
typedef struct pyllama_part {
    pyllama_run *       run; // how the sequence goes on after them; NULL: not at all
    llama_seq_id        seq_id;
    llama_pos           pos; // of the first of them
    const llama_token * tokens;
    int32_t             n_tokens;
    bool                each;        // tell of each token that is sampled
    bool                is_news;     // the last wait told something:
    bool                computed;    // whether they are in memory,
    bool                over;        // whether it goes on no more,
    int32_t             n_sampled;   // how many tokens the run has,
    int32_t             n_in_memory; // and how many of those are in memory
} pyllama_part;

// Python's side of the samplers that are written in it; each returns 0 if nothing was raised.
typedef struct pyllama_sampler_handlers {
    int32_t (*apply)(uint64_t id, llama_token_data_array * candidates);
    int32_t (*accept)(uint64_t id, llama_token token);
    int32_t (*reset)(uint64_t id);
    uint64_t (*clone)(uint64_t id); // the copy's id, or 0
    void (*free)(uint64_t id);
} pyllama_sampler_handlers;

#ifdef __cplusplus
extern "C" {
#endif
#include "guard.h"
#include "interrupt.h"

#include "chat.h"
#include "confine.h"
#include "context.h"
#include "device.h"
#include "self_check.h"
#include "fit.h"
#include "gguf_file.h"
#include "grammar.h"
#include "json_schema.h"
#include "lora.h"
#include "memory.h"
#include "model.h"
#include "python_sampler.h"
#include "quantize.h"
#include "reasoning_budget.h"
#include "sample_each.h"
#include "generate_each.h"
#include "generation.h"
#include "sampler.h"
#include "sampler_chain.h"
#include "state.h"
#include "threadpool.h"
#include "vocab.h"
#ifdef __cplusplus
}
#endif

#endif
