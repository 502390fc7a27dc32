#include "token_tree.hpp"

#include "common/common.h"

#include <algorithm>
#include <optional>
#include <string>

namespace pyllama {

struct token_tree::spelling {
    std::u32string characters;
    token          what;
};

namespace {

// As llama.cpp's grammars decode a text at the beginning of a character: they do not look at the
// bytes within one, read no further than a null byte, and take a null character for the end.
// Nothing for what they take for no text.
std::optional<std::pair<std::u32string, llama_partial_utf8>> decode(const std::string & piece) {
    std::u32string characters;
    uint32_t       value  = 0;
    int            n_more = 0;
    bool           ended  = false;
    for (const char c : piece) {
        const auto byte = static_cast<uint8_t>(c);
        if (byte == 0) {
            break;
        }
        if (n_more > 0) {
            value = (value << 6) + (byte & 0x3F);
            n_more--;
        } else {
            n_more = byte < 0x80 ? 0 : byte < 0xC0 ? -1 : byte < 0xE0 ? 1 : byte < 0xF0 ? 2 : 3;
            if (n_more < 0) {
                return std::nullopt;
            }
            value = byte & ((1U << (7 - n_more)) - 1);
        }
        ended = ended || (n_more == 0 && value == 0);
        if (n_more == 0 && !ended) {
            characters += static_cast<char32_t>(value);
        }
    }
    return std::pair(std::move(characters), llama_partial_utf8{value, n_more});
}

// How many bytes more a character has after one that begins it; -1 for one that begins none.
int n_following(uint8_t byte) {
    return byte < 0x80 ? 0 : byte < 0xC2 ? -1 : byte < 0xE0 ? 1 : byte < 0xF0 ? 2 : byte < 0xF5 ? 3 : -1;
}

// Whether the second byte of a character may follow the first.
bool may_follow(uint8_t first, uint8_t second) {
    const uint8_t least = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
    const uint8_t most  = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
    return least <= second && second <= most;
}

// Whether it can be a part of a text in UTF-8, which may begin and end within a character.
bool is_part_of_text(const std::string & piece) {
    const auto at = [&](size_t i) { return static_cast<uint8_t>(piece[i]); };
    size_t     i  = 0;
    while (i < piece.size() && (at(i) & 0xC0) == 0x80) {
        i++;
    }
    if (i > 3 || piece.find('\0') != std::string::npos) {
        return false;
    }
    while (i < piece.size()) {
        const uint8_t first  = at(i++);
        int           n_more = n_following(first);
        if (n_more < 0 || (n_more > 0 && i < piece.size() && !may_follow(first, at(i)))) {
            return false;
        }
        for (; n_more > 0 && i < piece.size(); n_more--) {
            if ((at(i++) & 0xC0) != 0x80) {
                return false;
            }
        }
    }
    return true;
}

} // namespace

token_tree::token_tree(const llama_vocab * vocab) : n_tokens_(llama_vocab_n_tokens(vocab)) {
    std::vector<spelling> spellings;
    std::vector<bool>     bytes(256);
    const auto        unshown = LLAMA_TOKEN_ATTR_CONTROL | LLAMA_TOKEN_ATTR_UNKNOWN;
    for (llama_token id = 0; id < n_tokens_; id++) {
        const std::string piece = common_token_to_piece(vocab, id);
        misread_.push_back((llama_vocab_get_attr(vocab, id) & unshown) || !is_part_of_text(piece));
        first_byte_.push_back(piece.empty() ? 0 : static_cast<uint8_t>(piece[0]));
        longest_piece_          = std::max(longest_piece_, piece.size());
        if (piece.size() == 1) {
            bytes[static_cast<uint8_t>(piece[0])] = true;
        }
        if (llama_vocab_is_eog(vocab, id)) {
            end_tokens_.push_back(id);
        } else if (!piece.empty() && piece[0] != '\0') {
            if (auto decoded = decode(piece)) {
                spellings.push_back({std::move(decoded->first), {id, decoded->second}});
            }
        }
    }
    std::sort(spellings.begin(), spellings.end(), [](const spelling & a, const spelling & b) {
        return a.characters < b.characters;
    });
    nodes_.push_back({0, 0, 0});
    open_ = {0};
    for (const spelling & next : spellings) {
        add(next);
    }
    for (const uint32_t node : open_) {
        nodes_[node].end = static_cast<uint32_t>(nodes_.size());
    }
    open_ = {};
    for (uint32_t node = 1; node < nodes_.size(); node = nodes_[node].end) {
        first_.emplace(nodes_[node].character, node);
    }
    // From 0xC2 to 0xF4 they begin a character, and those before go on with one.
    spells_bytes_ = std::all_of(bytes.begin() + 0x80, bytes.begin() + 0xC0, [](bool b) { return b; }) &&
                    std::all_of(bytes.begin() + 0xC2, bytes.begin() + 0xF5, [](bool b) { return b; });
}

uint32_t token_tree::child(uint32_t node, uint32_t character) const {
    if (node == 0) {
        const auto found = first_.find(character);
        return found == first_.end() ? 0 : found->second;
    }
    for (uint32_t next = node + 1; next < nodes_[node].end; next = nodes_[next].end) {
        if (nodes_[next].character == character) {
            return next;
        }
    }
    return 0;
}

// Each comes behind all that sort before it, so its node is on the path to the last one, or new.
void token_tree::add(const spelling & next) {
    const std::u32string & characters = next.characters;
    size_t                 depth      = 0; // of the nodes that it shares with the one before it
    while (depth < characters.size() && depth + 1 < open_.size() &&
           nodes_[open_[depth + 1]].character == characters[depth]) {
        depth++;
    }
    while (open_.size() > depth + 1) {
        nodes_[open_.back()].end = static_cast<uint32_t>(nodes_.size());
        open_.pop_back();
    }
    for (; depth < characters.size(); depth++) {
        open_.push_back(static_cast<uint32_t>(nodes_.size()));
        nodes_.push_back({characters[depth], 0, static_cast<uint32_t>(tokens_.size())});
    }
    tokens_.push_back(next.what);
}

} // namespace pyllama
