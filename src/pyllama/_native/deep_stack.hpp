// Calls that recurse deeper than the stack of any Python thread allows.
#pragma once

#include <cstddef>
#include <functional>

namespace pyllama {

// What grammars take at most, within the limits of pyllama.Grammar: they recurse once for each of
// 4,000 rules that begin with the next, and for each of 1,024 characters of a token.
constexpr size_t GRAMMAR_STACK = 1024 * 1024;

constexpr size_t DEEPEST_STACK = 1024 * 1024 * 1024; // memory is taken only for what is used

// Runs the call with so much stack: on this thread, or on one made for it, which this one waits
// for. What it throws, this throws.
void run_with_stack(size_t size, const std::function<void()> & call);

} // namespace pyllama
