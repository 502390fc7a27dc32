// What computes with a context, for one call and for many steps of one (generate_each.cpp).
#pragma once

#include "prelude.h"

namespace pyllama {

// Decodes a batch: 0, or what llama_decode() says failed. Throws refused where the threads that it
// computes with cannot be started.
int32_t decode(llama_context * ctx, const llama_batch & batch);

} // namespace pyllama
