// The special tokens of a vocabulary, and where a text names them.
#pragma once

#include "prelude.h"

#include <array>
#include <string>
#include <string_view>
#include <vector>

namespace pyllama {

// Bytes of a text: from begin up to, and without, end.
struct byte_range {
    size_t begin;
    size_t end;
};

// A special token (LLAMA_TOKEN_NULL for none), or the bytes of a text between two.
struct text_fragment {
    llama_token token;
    byte_range  text;
};

// Texts that are looked for all at once.
class text_set {
  public:
    explicit text_set(std::vector<std::string> texts);
    bool empty() const { return texts.empty(); }

    // Calls found(index, begin) for each place where one of them stands; places may overlap.
    template <class Found> void find(std::string_view text, Found && found) const;

  private:
    std::vector<std::string>                   texts;
    std::vector<size_t>                        order;  // their indices, sorted by text
    std::array<std::pair<size_t, size_t>, 256> begins; // of `order`, by the first byte
};

class special_tokens {
  public:
    explicit special_tokens(const llama_vocab * vocab);

    // The special tokens that a text names, and the rest between them, as llama_tokenize() takes
    // it apart. Control tokens (and those for unknown text) count if parse_special is set, where
    // no byte of theirs lies in one of the literal ranges, which must be sorted.
    std::vector<text_fragment> partition(std::string_view text, bool parse_special,
                                         const std::vector<byte_range> & literal) const;

    // Where a text must be broken, so that what comes out of it joined with other texts names no
    // control token: offsets behind the first character of what names one, in any case of letters,
    // or begins or ends with the same signs. With edges, also where its own beginning or end is a
    // part of such a name.
    std::vector<size_t> breaks(std::string_view text, bool edges) const;

    // Whether it is a control token, or that for unknown text.
    bool is_control(llama_token token) const;
    // The text of a special token.
    const std::string & text(llama_token token) const;
    // Whether a text holds the name of a special token, which can be taken apart.
    bool is_named(llama_token token, std::string_view text) const;

  private:
    struct special_token {
        llama_token id;
        std::string text;
        bool        control;
        bool        lstrip;
        bool        rstrip;
    };

    std::vector<special_token> tokens; // in the order in which llama.cpp looks for them
    std::vector<int32_t>       by_id;  // their indices, or -1
    text_set                   names;  // of `tokens`, by the same indices
    text_set                   signs;  // what breaks() looks for, in lower case
    std::string                joined; // control texts in lower case, each between line breaks
};

} // namespace pyllama
