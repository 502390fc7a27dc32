#include "special_tokens.hpp"

#include <algorithm>
#include <cctype>
#include <numeric>
#include <set>

namespace {

using pyllama::byte_range;
using pyllama::text_fragment;

constexpr int SPECIAL = LLAMA_TOKEN_ATTR_CONTROL | LLAMA_TOKEN_ATTR_UNKNOWN;

constexpr size_t LONGEST_EDGE = 256; // bytes: of longer names nothing but the whole is looked for

// The bytes of the character that a text begins with; what is no UTF-8 counts byte for byte.
size_t first_character(std::string_view text) {
    size_t n = 1;
    while (n < text.size() && n < 4 && (static_cast<unsigned char>(text[n]) & 0xC0) == 0x80) {
        n++;
    }
    return n;
}

std::string lower(std::string_view text) {
    std::string result(text);
    for (char & c : result) {
        if (c >= 'A' && c <= 'Z') {
            c += 'a' - 'A';
        }
    }
    return result;
}

bool is_space(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

// Of a character: no letter, digit, space or control character of ASCII.
bool is_sign(std::string_view character) {
    const auto c = static_cast<unsigned char>(character[0]);
    return c >= 0x80 || std::ispunct(c);
}

// The two signs that a control token's name begins or ends with, such as "<|". Not "</", which
// templates look for in answers.
void add_signs(const std::string & name, std::set<std::string> & signs) {
    const size_t first = first_character(name);
    if (first == name.size()) {
        return;
    }
    const size_t second = first + first_character(std::string_view(name).substr(first));
    if (is_sign(name) && is_sign(name.substr(first)) && name.compare(0, second, "</") != 0) {
        signs.insert(name.substr(0, second));
    }
    std::vector<size_t> begins; // of its characters
    for (size_t at = 0; at < name.size(); at += first_character(std::string_view(name).substr(at))) {
        begins.push_back(at);
    }
    const std::string last = name.substr(begins[begins.size() - 2]);
    if (is_sign(last) && is_sign(name.substr(begins.back())) && last != "</") {
        signs.insert(last);
    }
}

bool overlaps(const std::vector<byte_range> & ranges, byte_range bytes) {
    const auto after = std::lower_bound(
        ranges.begin(), ranges.end(), bytes.end,
        [](const byte_range & range, size_t end) { return range.begin < end; });
    return after != ranges.begin() && std::prev(after)->end > bytes.begin;
}

} // namespace

namespace pyllama {

text_set::text_set(std::vector<std::string> all) : texts(std::move(all)), order(texts.size()) {
    std::iota(order.begin(), order.end(), size_t(0));
    order.erase(std::remove_if(order.begin(), order.end(),
                               [&](size_t index) { return texts[index].empty(); }),
                order.end());
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t one, size_t other) { return texts[one] < texts[other]; });
    begins.fill({0, 0});
    for (size_t at = 0; at < order.size(); at++) {
        auto & range = begins[static_cast<unsigned char>(texts[order[at]][0])];
        if (range.second == 0) {
            range.first = at;
        }
        range.second = at + 1;
    }
}

template <class Found> void text_set::find(std::string_view text, Found && found) const {
    for (size_t begin = 0; begin < text.size(); begin++) {
        auto [low, high] = begins[static_cast<unsigned char>(text[begin])];
        for (size_t length = 1; low < high; length++) {
            // All from low to high begin with so many bytes of the text, shorter ones first.
            while (low < high && texts[order[low]].size() == length) {
                found(order[low++], begin);
            }
            if (begin + length == text.size()) {
                break;
            }
            const auto next  = static_cast<unsigned char>(text[begin + length]);
            const auto byte  = [&](size_t index) {
                return static_cast<unsigned char>(texts[index][length]);
            };
            const auto first = order.begin() + static_cast<std::ptrdiff_t>(low);
            const auto last  = order.begin() + static_cast<std::ptrdiff_t>(high);
            const auto from  = std::partition_point(first, last,
                                                    [&](size_t index) { return byte(index) < next; });
            const auto to    = std::partition_point(from, last,
                                                    [&](size_t index) { return byte(index) == next; });
            low  = static_cast<size_t>(from - order.begin());
            high = static_cast<size_t>(to - order.begin());
        }
    }
}

special_tokens::special_tokens(const llama_vocab * vocab) : names({}), signs({}) {
    constexpr int KINDS = SPECIAL | LLAMA_TOKEN_ATTR_USER_DEFINED;
    if (llama_vocab_type(vocab) == LLAMA_VOCAB_TYPE_NONE) {
        return;
    }
    const llama_token n_tokens = llama_vocab_n_tokens(vocab);
    for (llama_token id = 0; id < n_tokens; id++) {
        const int attr = llama_vocab_get_attr(vocab, id);
        if (attr & KINDS) {
            tokens.push_back({id, llama_vocab_get_text(vocab, id), (attr & SPECIAL) != 0,
                              (attr & LLAMA_TOKEN_ATTR_LSTRIP) != 0,
                              (attr & LLAMA_TOKEN_ATTR_RSTRIP) != 0});
        }
    }
    // The order of llama.cpp, which sorts the same list by the same rule.
    std::sort(tokens.begin(), tokens.end(), [](const special_token & a, const special_token & b) {
        return a.text.size() > b.text.size();
    });

    by_id.assign(static_cast<size_t>(n_tokens), -1);
    std::vector<std::string> texts;
    std::vector<std::string> control;
    std::set<std::string>    pairs;
    joined = "\n";
    for (const special_token & token : tokens) {
        by_id[static_cast<size_t>(token.id)] = static_cast<int32_t>(texts.size());
        texts.push_back(token.text);
        if (!token.control || token.text.empty()) {
            continue;
        }
        control.push_back(lower(token.text));
        if (token.text.size() <= LONGEST_EDGE) {
            joined += control.back() + "\n";
            add_signs(control.back(), pairs);
        }
    }
    control.insert(control.end(), pairs.begin(), pairs.end());
    names = text_set(std::move(texts));
    signs = text_set(std::move(control));
}

std::vector<text_fragment> special_tokens::partition(
    std::string_view text, bool parse_special, const std::vector<byte_range> & literal) const {
    if (text.empty()) {
        return {};
    }
    std::vector<text_fragment> fragments = {{LLAMA_TOKEN_NULL, {0, text.size()}}};
    std::vector<bool>          named(tokens.size());
    names.find(text, [&](size_t index, size_t) { named[index] = true; });

    for (size_t index = 0; index < tokens.size(); index++) {
        const special_token & token = tokens[index];
        if (!named[index] || (token.control && !parse_special)) {
            continue;
        }
        std::vector<text_fragment> parts;
        for (const text_fragment & fragment : fragments) {
            auto [begin, end] = fragment.text;
            size_t from       = begin;
            while (fragment.token == LLAMA_TOKEN_NULL) {
                const size_t at = text.substr(0, end).find(token.text, from);
                if (at == std::string_view::npos) {
                    break;
                }
                const size_t after = at + token.text.size();
                if (token.control && overlaps(literal, {at, after})) {
                    from = at + 1;
                    continue;
                }
                size_t left = at;
                while (token.lstrip && left > begin && is_space(text[left - 1])) {
                    left--;
                }
                if (left > begin) {
                    parts.push_back({LLAMA_TOKEN_NULL, {begin, left}});
                }
                parts.push_back({token.id, {at, after}});
                begin = after;
                while (token.rstrip && begin < end && is_space(text[begin])) {
                    begin++;
                }
                from = begin;
            }
            if (fragment.token != LLAMA_TOKEN_NULL || begin < end) {
                parts.push_back({fragment.token, {begin, end}});
            }
        }
        fragments = std::move(parts);
    }
    return fragments;
}

std::vector<size_t> special_tokens::breaks(std::string_view text, bool edges) const {
    std::vector<size_t> found;
    if (signs.empty()) {
        return found;
    }
    const std::string folded = lower(text);
    signs.find(folded, [&](size_t, size_t begin) {
        found.push_back(begin + first_character(text.substr(begin)));
    });

    size_t begin = 0;
    size_t end   = folded.size();
    while (begin < end && is_space(folded[begin])) {
        begin++;
    }
    while (end > begin && is_space(folded[end - 1])) {
        end--;
    }
    const std::string core = folded.substr(begin, end - begin);
    if (edges && !core.empty()) {
        const size_t first = begin + first_character(std::string_view(core));
        // A beginning that a name ends with, or all of it a part of one.
        for (size_t n = 1; n <= std::min(core.size(), LONGEST_EDGE); n++) {
            const std::string part = core.substr(0, n);
            if (joined.find(part) == std::string::npos) {
                break;
            }
            if (n == core.size() || joined.find(part + "\n") != std::string::npos) {
                found.push_back(first);
                break;
            }
        }
        // An end that a name begins with.
        for (size_t n = 1; n <= std::min(core.size(), LONGEST_EDGE); n++) {
            const std::string part = core.substr(core.size() - n);
            if (joined.find(part) == std::string::npos) {
                break;
            }
            if (joined.find("\n" + part) != std::string::npos) {
                found.push_back(end);
                break;
            }
        }
    }
    std::sort(found.begin(), found.end());
    found.erase(std::unique(found.begin(), found.end()), found.end());
    return found;
}

bool special_tokens::is_control(llama_token token) const {
    const int32_t index = by_id[static_cast<size_t>(token)];
    return index >= 0 && tokens[static_cast<size_t>(index)].control;
}

const std::string & special_tokens::text(llama_token token) const {
    return tokens[static_cast<size_t>(by_id[static_cast<size_t>(token)])].text;
}

bool special_tokens::is_named(llama_token token, std::string_view where) const {
    const std::string & name = text(token);
    return !name.empty() && first_character(name) < name.size() &&
           where.find(name) != std::string_view::npos;
}

} // namespace pyllama
