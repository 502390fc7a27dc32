#include "grammar_lengths.hpp"

#include <algorithm>
#include <array>
#include <functional>
#include <optional>
#include <queue>

namespace pyllama {

namespace {

constexpr size_t   LONGEST_TEXT = 16 * 1024;        // bytes: of more nobody waits for the end
constexpr size_t   MOST_BYTES   = 16 * 1024 * 1024; // of the texts of all rules
constexpr uint32_t MOST_EXTRA   = 96;               // bytes that a value takes beyond its shortest
constexpr int      SWEEPS       = 12;

bool ends_sequence(const llama_grammar_element * place) {
    return place->type == LLAMA_GRETYPE_END || place->type == LLAMA_GRETYPE_ALT;
}

bool is_character_place(const llama_grammar_element * place) {
    return place->type == LLAMA_GRETYPE_CHAR || place->type == LLAMA_GRETYPE_CHAR_NOT ||
           place->type == LLAMA_GRETYPE_CHAR_ANY;
}

const llama_grammar_element * next_place(const llama_grammar_element * place) {
    const bool characters = is_character_place(place);
    place++;
    while (characters && (place->type == LLAMA_GRETYPE_CHAR_ALT ||
                          place->type == LLAMA_GRETYPE_CHAR_RNG_UPPER)) {
        place++;
    }
    return place;
}

// Whether a place takes space only, which no value needs more of.
bool is_space_place(const llama_grammar_element * place) {
    if (place->type != LLAMA_GRETYPE_CHAR) {
        return false;
    }
    const auto * end = next_place(place);
    return std::all_of(place, end, [](const llama_grammar_element & element) {
        return element.value == ' ' || element.value == '\n' || element.value == '\t';
    });
}

// Whether an alternative is one more item and then the rule again: there need be none.
bool is_next_item(uint32_t rule, const llama_grammar_element * place) {
    bool again = false;
    bool item  = false;
    for (; !ends_sequence(place); place = next_place(place)) {
        if (place->type == LLAMA_GRETYPE_RULE_REF) {
            (place->value == rule ? again : item) = true;
        }
    }
    return again && item;
}

// Which of two bytes a shortest text rather has: a full stop or a digit before a letter, a space
// before a new line.
constexpr std::array<uint8_t, 256> RANKS = [] {
    std::array<uint8_t, 256> ranks{};
    uint8_t                  next = 0;
    const auto add = [&](int first, int last) {
        for (int byte = first; byte <= last; byte++) {
            ranks[static_cast<size_t>(byte)] = next++;
        }
    };
    add('.', '.');
    add('0', '9');
    add('a', 'z');
    add('A', 'Z');
    add(' ', '-');
    add('/', '/');
    add(':', '@');
    add('[', '`');
    add('{', '~');
    add('\n', '\n');
    add('\t', '\t');
    add(0, 8);
    add(11, 31);
    add(127, 255);
    return ranks;
}();

bool comes_first(const std::string & a, const std::string & b) {
    if (a.size() != b.size()) {
        return a.size() < b.size();
    }
    return std::lexicographical_compare(a.begin(), a.end(), b.begin(), b.end(), [](char x, char y) {
        return RANKS[static_cast<uint8_t>(x)] < RANKS[static_cast<uint8_t>(y)];
    });
}

std::string utf8(uint32_t c) {
    const auto byte = [](uint32_t value) { return static_cast<char>(value); };
    if (c < 0x80) {
        return {byte(c)};
    }
    if (c < 0x800) {
        return {byte(0xC0 | c >> 6), byte(0x80 | (c & 0x3F))};
    }
    if (c < 0x10000) {
        return {byte(0xE0 | c >> 12), byte(0x80 | (c >> 6 & 0x3F)), byte(0x80 | (c & 0x3F))};
    }
    return {byte(0xF0 | c >> 18), byte(0x80 | (c >> 12 & 0x3F)), byte(0x80 | (c >> 6 & 0x3F)),
            byte(0x80 | (c & 0x3F))};
}

// The shortest text of a place's characters.
std::optional<std::string> shortest_character(const llama_grammar_element * place) {
    std::optional<std::string> best;
    const auto                 offer = [&](uint32_t c) {
        const bool possible = c > 0 && c < 0x110000 && (c < 0xD800 || c > 0xDFFF);
        if (possible && holds(place, c)) {
            std::string text = utf8(c);
            if (!best || comes_first(text, *best)) {
                best = std::move(text);
            }
        }
    };
    for (uint32_t c = 1; c < 0x80; c++) {
        offer(c);
    }
    if (best) {
        return best;
    }
    // Of those beyond, the first is where a range begins or behind one.
    offer(0x80);
    offer(0xE000);
    const auto * end = next_place(place);
    for (const auto * element = place; element != end; element++) {
        offer(element->value);
        offer(element->value + 1);
    }
    return best;
}

} // namespace

std::u32string characters_of(const std::string & text) {
    std::u32string characters;
    for (size_t i = 0; i < text.size();) {
        const auto byte   = static_cast<uint8_t>(text[i++]);
        const int  n_more = byte < 0x80 ? 0 : byte < 0xE0 ? 1 : byte < 0xF0 ? 2 : 3;
        uint32_t   value  = n_more == 0 ? byte : byte & ((1U << (6 - n_more)) - 1);
        for (int k = 0; k < n_more && i < text.size(); k++) {
            value = value << 6 | (static_cast<uint8_t>(text[i++]) & 0x3FU);
        }
        characters += static_cast<char32_t>(value);
    }
    return characters;
}

bool holds(const llama_grammar_element * place, uint32_t character) {
    const bool inverse = place->type == LLAMA_GRETYPE_CHAR_NOT;
    if (place->type == LLAMA_GRETYPE_CHAR_ANY) {
        return true;
    }
    for (const llama_grammar_element * next = place;;) {
        const bool     range = next[1].type == LLAMA_GRETYPE_CHAR_RNG_UPPER;
        const uint32_t last  = range ? next[1].value : next->value;
        if (next->value <= character && character <= last) {
            return !inverse;
        }
        next += range ? 2 : 1;
        if (next->type != LLAMA_GRETYPE_CHAR_ALT) {
            return inverse;
        }
    }
}

grammar_lengths::grammar_lengths(const llama_grammar_rules & rules)
    : rules_(rules), found_(rules.size()) {
    for (const auto & rule : rules) {
        begins_.emplace_back(rule.data(), static_cast<uint32_t>(begins_.size()));
        for (const auto & element : rule) {
            if (element.type == LLAMA_GRETYPE_TOKEN || element.type == LLAMA_GRETYPE_TOKEN_NOT) {
                return;
            }
        }
    }
    std::sort(begins_.begin(), begins_.end(), [](const auto & a, const auto & b) {
        return std::less<>()(a.first, b.first);
    });
    if (!find_texts()) {
        return;
    }
    find_extras();
    find_tails();
    find_growth();
    known_ = true;
}

std::vector<grammar_lengths::alternative> grammar_lengths::alternatives() const {
    std::vector<alternative> all;
    for (uint32_t rule = 0; rule < rules_.size(); rule++) {
        const auto * place = rules_[rule].data();
        if (rules_[rule].empty()) {
            continue; // a number that no rule has
        }
        for (;; place++) {
            all.emplace_back(rule, place);
            while (!ends_sequence(place)) {
                place++;
            }
            if (place->type == LLAMA_GRETYPE_END) {
                break;
            }
        }
    }
    return all;
}

// Knuth's way: the rule with the shortest text that is not settled yet is settled by it, since no
// other can become shorter by it.
bool grammar_lengths::find_texts() {
    const std::vector<alternative>     all = alternatives();
    std::vector<uint32_t>              n_open(all.size());
    std::vector<std::vector<uint32_t>> users(rules_.size()); // alternatives, once for each use
    std::vector<bool>                  impossible(all.size());

    using offer            = std::pair<std::string, uint32_t>; // a text of a rule
    const auto comes_later = [](const offer & a, const offer & b) {
        return comes_first(b.first, a.first);
    };
    std::priority_queue<offer, std::vector<offer>, decltype(comes_later)> offers(comes_later);

    size_t     n_bytes  = 0;
    const auto complete = [&](uint32_t index) {
        const auto [rule, begin] = all[index];
        std::string text;
        append(text, begin);
        if (!found_[rule].found && text.size() <= LONGEST_TEXT) {
            n_bytes += text.size();
            offers.emplace(std::move(text), rule);
        }
    };
    for (uint32_t i = 0; i < all.size(); i++) {
        for (const auto * place = all[i].second; !ends_sequence(place); place = next_place(place)) {
            if (place->type == LLAMA_GRETYPE_RULE_REF) {
                users[place->value].push_back(i);
                n_open[i]++;
            } else if (!shortest_character(place)) {
                impossible[i] = true;
            }
        }
    }
    for (uint32_t i = 0; i < all.size(); i++) {
        if (n_open[i] == 0 && !impossible[i]) {
            complete(i);
        }
    }
    while (!offers.empty() && n_bytes <= MOST_BYTES) {
        auto [text, index] = offers.top();
        offers.pop();
        rule & settled = found_[index];
        if (settled.found) {
            continue;
        }
        settled.found = true;
        settled.text  = std::move(text);
        for (const uint32_t user : users[index]) {
            if (--n_open[user] == 0 && !impossible[user]) {
                complete(user);
            }
        }
    }
    return n_bytes <= MOST_BYTES;
}

// The text of the rest of a sequence, whose rules all have one.
void grammar_lengths::append(std::string & text, const llama_grammar_element * place) const {
    for (; !ends_sequence(place) && text.size() <= LONGEST_TEXT; place = next_place(place)) {
        text += place->type == LLAMA_GRETYPE_RULE_REF ? found_[place->value].text
                                                      : *shortest_character(place);
    }
}

// An estimate, for which a few sweeps are enough: most rules refer to those behind them.
void grammar_lengths::find_extras() {
    const std::vector<alternative> all = alternatives();
    for (int sweep = 0; sweep < SWEEPS; sweep++) {
        bool changed = false;
        for (auto one = all.rbegin(); one != all.rend(); one++) {
            rule &   own    = found_[one->first];
            uint64_t usual  = 0;
            bool     exists = own.found && !is_next_item(one->first, one->second);
            for (const auto * place = one->second; exists && !ends_sequence(place);
                 place              = next_place(place)) {
                if (place->type != LLAMA_GRETYPE_RULE_REF) {
                    usual += !is_space_place(place);
                    continue;
                }
                const rule & used = found_[place->value];
                exists            = used.found;
                usual += used.text.size() + used.extra;
            }
            const uint64_t extra = usual > own.text.size() ? usual - own.text.size() : 0;
            if (exists && extra > own.extra && own.extra < MOST_EXTRA) {
                own.extra = static_cast<uint32_t>(std::min<uint64_t>(extra, MOST_EXTRA));
                changed   = true;
            }
        }
        if (!changed) {
            return;
        }
    }
}

// In tokens: a few characters may be as many, as digits are, and of a longer text three are one.
uint32_t grammar_lengths::extra_of(const llama_grammar_element * place) const {
    constexpr uint32_t SHORT = 8;
    if (place->type != LLAMA_GRETYPE_RULE_REF) {
        return 0;
    }
    const uint32_t bytes = found_[place->value].extra;
    return bytes <= SHORT ? bytes : SHORT + (bytes - SHORT) / 3;
}

void grammar_lengths::find_tails() {
    tails_.resize(rules_.size());
    for (uint32_t index = 0; index < rules_.size(); index++) {
        const llama_grammar_rule & rule = rules_[index];
        std::vector<need> &        own  = tails_[index];
        own.resize(rule.size(), {0, 0});
        need behind = {0, 0};
        for (size_t i = rule.size(); i-- > 0;) {
            const llama_grammar_element * place = &rule[i];
            if (ends_sequence(place)) {
                behind = {0, 0};
            } else if (place->type == LLAMA_GRETYPE_RULE_REF) {
                const auto & used = found_[place->value];
                behind.least = !used.found || behind.least == ENDLESS
                                   ? ENDLESS
                                   : behind.least + static_cast<uint32_t>(used.text.size());
                behind.extra += extra_of(place);
            } else if (is_character_place(place)) {
                const auto character = shortest_character(place);
                behind.least         = !character || behind.least == ENDLESS
                                           ? ENDLESS
                                           : behind.least + static_cast<uint32_t>(character->size());
            }
            own[i] = behind;
        }
    }
}

// What a rule comes to, at the most, once it is replaced by what its first character is in. Rules
// that begin with themselves are refused, so that this ends.
void grammar_lengths::find_growth() {
    const auto sum = [&](const llama_grammar_element * place) -> uint32_t {
        if (ends_sequence(place)) {
            return 0;
        }
        const need & one = tail(place);
        return one.least == ENDLESS ? 0 : one.least + one.extra;
    };
    std::vector<std::vector<alternative>> by_rule(rules_.size());
    for (const alternative & one : alternatives()) {
        by_rule[one.first].push_back(one);
    }
    std::vector<std::optional<uint32_t>>    known(rules_.size());
    const std::function<uint32_t(uint32_t)> of_rule = [&](uint32_t rule) -> uint32_t {
        if (known[rule]) {
            return *known[rule];
        }
        known[rule]   = 0;
        uint32_t most = 0;
        for (const auto & [owner, begin] : by_rule[rule]) {
            for (const auto * place = begin; !ends_sequence(place); place = next_place(place)) {
                if (place->type != LLAMA_GRETYPE_RULE_REF) {
                    most = std::max(most, sum(place));
                    break;
                }
                most = std::max(most, of_rule(place->value) + sum(next_place(place)));
                const auto & used = found_[place->value];
                if (!used.found || !used.text.empty()) {
                    break;
                }
            }
        }
        known[rule] = most;
        return most;
    };
    for (uint32_t rule = 0; rule < rules_.size(); rule++) {
        growth_ = std::max(growth_, of_rule(rule));
    }
}

uint32_t grammar_lengths::rule_of(const llama_grammar_element * place) const {
    const auto behind = std::upper_bound(
        begins_.begin(), begins_.end(), place,
        [](const auto * one, const auto & entry) { return std::less<>()(one, entry.first); });
    return (behind - 1)->second;
}

const grammar_lengths::need & grammar_lengths::tail(const llama_grammar_element * place) const {
    const uint32_t rule = rule_of(place);
    return tails_[rule][static_cast<size_t>(place - rules_[rule].data())];
}

grammar_lengths::need grammar_lengths::of(const llama_grammar_stack & stack) const {
    need whole = {0, 0};
    for (const llama_grammar_element * place : stack) {
        const need & one = tail(place);
        if (one.least == ENDLESS) {
            return {ENDLESS, 0};
        }
        whole = {whole.least + one.least, whole.extra + one.extra};
    }
    return whole;
}

std::string grammar_lengths::text(const llama_grammar_stack & stack) const {
    std::string text;
    for (auto place = stack.rbegin(); place != stack.rend(); place++) {
        append(text, *place);
    }
    return text;
}

bool grammar_lengths::ends(const llama_grammar_stacks & stacks) const {
    return std::any_of(stacks.begin(), stacks.end(),
                       [&](const auto & stack) { return of(stack).least < LONGEST_TEXT; });
}

grammar_lengths::rest grammar_lengths::shortest(const llama_grammar_stacks & stacks) const {
    uint32_t                                 least = ENDLESS;
    uint32_t                                 extra = 0;
    std::vector<const llama_grammar_stack *> best;
    for (const llama_grammar_stack & stack : stacks) {
        const need one = of(stack);
        if (one.least > least || one.least >= LONGEST_TEXT) {
            continue;
        }
        if (one.least < least) {
            best.clear();
            extra = one.extra;
        }
        least = one.least;
        extra = std::min(extra, one.extra);
        best.push_back(&stack);
    }
    rest found = {"", extra};
    for (size_t i = 0; i < best.size(); i++) {
        std::string one = text(*best[i]);
        if (i == 0 || comes_first(one, found.text)) {
            found.text = std::move(one);
        }
    }
    return found;
}

} // namespace pyllama
