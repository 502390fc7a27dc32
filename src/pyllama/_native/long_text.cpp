#include "long_text.hpp"

#include "deep_stack.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <stdexcept>

namespace {

constexpr size_t STACK_PER_CHARACTER = 512; // bytes; measured are 321 for the worst expression
constexpr size_t LONGEST_STRETCH     = pyllama::DEEPEST_STACK / STACK_PER_CHARACTER;

bool is_letter(unsigned char c) {
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c >= 0x80;
}

bool is_digit(unsigned char c) {
    return c >= '0' && c <= '9';
}

bool is_ascii_space(unsigned char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

// The length in bytes of a white space character of Unicode at a place, or 0.
size_t space_at(std::string_view text, size_t at) {
    static constexpr std::array<std::string_view, 19> WIDE = {
        "\xC2\x85",     "\xC2\xA0",     "\xE1\x9A\x80", "\xE2\x80\x80", "\xE2\x80\x81",
        "\xE2\x80\x82", "\xE2\x80\x83", "\xE2\x80\x84", "\xE2\x80\x85", "\xE2\x80\x86",
        "\xE2\x80\x87", "\xE2\x80\x88", "\xE2\x80\x89", "\xE2\x80\x8A", "\xE2\x80\xA8",
        "\xE2\x80\xA9", "\xE2\x80\xAF", "\xE2\x81\x9F", "\xE3\x80\x80"};
    if (static_cast<unsigned char>(text[at]) < 0x80) {
        return is_ascii_space(static_cast<unsigned char>(text[at])) ? 1 : 0;
    }
    for (const std::string_view space : WIDE) {
        if (text.compare(at, space.size(), space) == 0) {
            return space.size();
        }
    }
    return 0;
}

// jais2 takes white space after the last line break by 512, while more follow, and looks through
// all of it each time.
std::vector<size_t> cuts_of_jais2(std::string_view text) {
    constexpr size_t     TAKEN = 512;
    constexpr size_t     EVERY = 8; // of those
    std::vector<size_t>  cuts;
    std::vector<size_t>  spaces; // since the last line break
    const auto           end_run = [&] {
        for (size_t n = TAKEN * EVERY; n < spaces.size(); n += TAKEN * EVERY) {
            cuts.push_back(spaces[n]);
        }
        spaces.clear();
    };
    for (size_t at = 0; at < text.size();) {
        const size_t length = space_at(text, at);
        if (length == 0) {
            end_run();
            at++;
            continue;
        }
        if (text[at] == '\n' || text[at] == '\r') {
            spaces.clear(); // it takes all up to here at once
        } else {
            spaces.push_back(at);
        }
        at += length;
    }
    end_run();
    return cuts;
}

// superbpe takes digits by three from the right, and counts to the end for each.
std::vector<size_t> cuts_of_superbpe(std::string_view text) {
    constexpr size_t    EVERY = 90; // digits
    std::vector<size_t> cuts;
    for (size_t at = 0; at < text.size(); at++) {
        if (!is_digit(static_cast<unsigned char>(text[at]))) {
            continue;
        }
        size_t end = at;
        while (end < text.size() && is_digit(static_cast<unsigned char>(text[end]))) {
            end++;
        }
        for (size_t cut = at + (end - at) % 3 + EVERY; cut < end; cut += EVERY) {
            cuts.push_back(cut);
        }
        at = end;
    }
    return cuts;
}

// A character of three bytes from U+4E00 to U+9FA5 or U+AC00 to U+D7A3.
bool is_ideograph_or_hangul(std::string_view text, size_t at) {
    if (at + 2 >= text.size()) {
        return false;
    }
    const auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<unsigned char>(text[at + i])); };
    if (byte(0) >> 4 != 0xE || byte(1) >> 6 != 2 || byte(2) >> 6 != 2) {
        return false;
    }
    const uint32_t c = (byte(0) & 0xF) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F);
    return (c >= 0x4E00 && c <= 0x9FA5) || (c >= 0xAC00 && c <= 0xD7A3);
}

// deepseek-llm looks from each white space character of a stretch to its end, unless a letter, a
// sign or the end follows. A stretch between a letter, sign or line break of ASCII and a digit or
// ideograph is a word of its own, found at once where it ends the text. Others cannot be cut.
std::vector<size_t> cuts_of_deepseek_llm(std::string_view text) {
    constexpr size_t    MOST    = size_t(1) << 26; // steps: some seconds
    constexpr size_t    SHORT   = 64;              // characters, which are not worth a cut
    std::vector<size_t> cuts;
    size_t              steps   = 0;
    size_t              longest = 0;
    size_t              n       = 0;
    bool                begins  = true; // what comes before the stretch ends a word
    for (size_t at = 0; at < text.size();) {
        const size_t length = space_at(text, at);
        const auto   c      = static_cast<unsigned char>(text[at]);
        if (length > 0) {
            const bool line_break = c == '\n' || c == '\r';
            n                     = line_break ? 0 : n + 1;
            begins                = begins || line_break;
            at += length;
            continue;
        }
        if (n >= SHORT && begins && (is_digit(c) || is_ideograph_or_hangul(text, at))) {
            cuts.push_back(at);
        } else if (c >= 0x80 || is_digit(c)) {
            steps += n * n;
            longest = std::max(longest, n);
        }
        n      = 0;
        begins = c > ' ' && c < 0x7F && !is_digit(c);
        at++;
    }
    if (steps > MOST) {
        throw std::length_error(
            "it holds " + std::to_string(longest) +
            " white space characters in a row between characters that are no letters and signs of "
            "ASCII, for which this model's pre-tokenizer takes quadratic time: at most 8,192 in all "
            "are taken");
    }
    return cuts;
}

} // namespace

size_t pyllama::splitting_stack(std::string_view text) {
    // A stretch ends with white space, except for single spaces between letters. An expression
    // begins at most one character before it.
    size_t longest = 0;
    size_t length  = 0; // in characters
    for (size_t at = 0; at < text.size(); at++) {
        const auto c = static_cast<unsigned char>(text[at]);
        if ((c & 0xC0) == 0x80) {
            continue;
        }
        const bool begins = at > 0 && is_ascii_space(static_cast<unsigned char>(text[at - 1])) &&
                            !is_ascii_space(c);
        const bool joined = at > 1 && text[at - 1] == ' ' && is_letter(c) &&
                            is_letter(static_cast<unsigned char>(text[at - 2]));
        if (begins && !joined) {
            longest = std::max(longest, length);
            length  = 0;
        }
        length++;
    }
    longest = std::max(longest, length) + 1;
    if (longest > LONGEST_STRETCH) {
        throw std::length_error("it has " + std::to_string(longest) +
                                " characters without a break; at most " +
                                std::to_string(LONGEST_STRETCH) + " are taken");
    }
    return longest * STACK_PER_CHARACTER;
}

std::vector<size_t> pyllama::splitting_cuts(const std::string & pre, std::string_view text) {
    if (pre == "jais-2") {
        return cuts_of_jais2(text);
    }
    if (pre == "superbpe") {
        return cuts_of_superbpe(text);
    }
    if (pre == "deepseek-llm") {
        return cuts_of_deepseek_llm(text);
    }
    return {};
}
