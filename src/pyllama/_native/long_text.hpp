// Finds what would crash llama.cpp's pre-tokenizers in a long text, or take them quadratic time.
//
// Byte-pair vocabularies split a text with regular expressions first, many of them with std::regex:
// libstdc++'s recurses for each character that a repetition takes, with some 320 bytes of stack.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace pyllama {

// The stack that splitting a text takes, by its longest stretch that an expression may match.
// Throws for a stretch that is too long.
size_t splitting_stack(std::string_view text);

// Places at which a text may be cut into texts that are tokenized one by one, to the same tokens,
// because the pre-tokenizer of this name (tokenizer.ggml.pre) splits it there anyway. Those for
// which its expressions would take quadratic time. Throws for a text that they take too long for.
std::vector<size_t> splitting_cuts(const std::string & pre, std::string_view text);

} // namespace pyllama
