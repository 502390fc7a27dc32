// A lazy grammar whose trigger patterns cannot overflow the stack.
#pragma once

#include "sampler.hpp"

namespace pyllama {

// Takes a lazy grammar of llama.cpp, and behaves like it.
// stack_per_byte: what its patterns need, at most, for each byte of the text they are searched in.
sampler_ptr with_deep_stack(sampler_ptr grammar, const llama_vocab * vocab, size_t stack_per_byte);

} // namespace pyllama
