// The rules are read by llama.cpp's own parser, one after the other: for a whole grammar it would
// write its complaint, and all of the grammar, to stderr. What it does not survive is found before:
// it recurses as deep as parentheses nest, makes 2**64 rules of "a{2,1}", and fills any memory with
// repetitions of long items.
#include "gbnf.hpp"

#include <algorithm>
#include <cstring>

namespace pyllama {

namespace {

constexpr size_t   MAX_NESTING    = 200;              // parentheses in parentheses
constexpr uint64_t MAX_MEMORY     = 64 * 1024 * 1024; // bytes of the rules, roughly
constexpr uint64_t MEMORY_OF_RULE = 160;              // beside its elements and its name
constexpr uint64_t MAX_REPETITION = 2000;             // llama.cpp's MAX_REPETITION_THRESHOLD
constexpr uint64_t NO_MAXIMUM     = UINT64_MAX;

bool is_digit(char c) {
    return '0' <= c && c <= '9';
}

bool is_word(char c) {
    return ('a' <= c && c <= 'z') || ('A' <= c && c <= 'Z') || c == '-' || is_digit(c);
}

std::string place(const std::string & source, size_t at) {
    size_t line = 1, column = 1;
    for (size_t i = 0; i < at; i++) {
        if (source[i] == '\n') {
            line++;
            column = 1;
        } else if ((source[i] & 0xC0) != 0x80) { // counts a character once, not its bytes
            column++;
        }
    }
    return "line " + std::to_string(line) + ", column " + std::to_string(column) + ": ";
}

// Goes over a grammar before llama.cpp does. It need not see what is misspelt, since llama.cpp
// stops there.
class gbnf_scan {
  public:
    gbnf_scan(std::string & source, bool has_vocab) : source_(source), has_vocab_(has_vocab) {}

    void run() {
        size_t nesting = 0;
        while (at_ < source_.size()) {
            const size_t start = at_;
            switch (const char c = source_[at_++]) {
                case '#': skip_comment(start); break;
                case '"':
                case '[': item_ = skip_until(c == '"' ? '"' : ']'); break;
                case '<': skip_token(start); break;
                case '(':
                    if (++nesting > MAX_NESTING) {
                        fail(start, "parentheses nest deeper than " + std::to_string(MAX_NESTING));
                    }
                    take(start, 0, 1);
                    break;
                case ')':
                    nesting -= nesting > 0;
                    item_ = 1;
                    break;
                case '*': repeat(start, 0, NO_MAXIMUM); break;
                case '+': repeat(start, 1, NO_MAXIMUM); break;
                case '?': repeat(start, 0, 1); break;
                case '{': skip_counts(start); break;
                case '.': item_ = 1; break;
                default:
                    if (is_word(c)) {
                        skip_name(start);
                    }
            }
        }
    }

  private:
    [[noreturn]] void fail(size_t at, const std::string & what) const {
        throw gbnf_error(place(source_, at) + what);
    }

    void blank(size_t begin, size_t end) {
        std::fill(source_.begin() + static_cast<std::ptrdiff_t>(begin),
                  source_.begin() + static_cast<std::ptrdiff_t>(end), ' ');
        at_ = end;
    }

    void skip_comment(size_t start) {
        blank(start, std::min(source_.find_first_of("\r\n", start), source_.size()));
    }

    void skip_name(size_t start) {
        while (at_ < source_.size() && is_word(source_[at_])) {
            at_++;
        }
        longest_name_ = std::max(longest_name_, at_ - start);
        item_         = 1;
    }

    // How many bytes, which are no fewer than its elements.
    size_t skip_until(char end) {
        const size_t begin = at_;
        while (at_ < source_.size() && source_[at_] != end) {
            at_ += source_[at_] == '\\' ? 2 : 1;
        }
        at_ = std::min(at_ + 1, source_.size());
        return at_ - begin;
    }

    // <[id]> or <text>. Where no text can be looked up, any character stands for the token, so
    // that the rest of the grammar can be read.
    void skip_token(size_t start) {
        const size_t end = source_.find('>', at_);
        if (end == std::string::npos) {
            fail(start, "the token is not closed by >");
        }
        item_ = 1;
        if (has_vocab_ || source_[at_] == '[') {
            at_ = end + 1;
            return;
        }
        const size_t begin = start > 0 && source_[start - 1] == '!' ? start - 1 : start;
        blank(begin, end + 1);
        source_[begin] = '.';
    }

    void skip_space() {
        while (at_ < source_.size() && std::strchr(" \t\r\n#", source_[at_])) {
            if (source_[at_] == '#') {
                skip_comment(at_);
            } else {
                at_++;
            }
        }
    }

    // Nothing larger is told apart from MAX_REPETITION + 1.
    uint64_t number() {
        uint64_t value = 0;
        for (; at_ < source_.size() && is_digit(source_[at_]); at_++) {
            value = std::min(value * 10 + static_cast<uint64_t>(source_[at_] - '0'),
                             MAX_REPETITION + 1);
        }
        return value;
    }

    void skip_counts(size_t start) {
        skip_space();
        const uint64_t min = number();
        uint64_t       max = min;
        skip_space();
        if (at_ < source_.size() && source_[at_] == ',') {
            at_++;
            skip_space();
            max = at_ < source_.size() && is_digit(source_[at_]) ? number() : NO_MAXIMUM;
        }
        if (min <= MAX_REPETITION) { // else llama.cpp refuses it
            repeat(start, min, max > MAX_REPETITION ? NO_MAXIMUM : max);
        }
    }

    // item{m,n}: m items, then n - m rules, of which each is an item and the next rule, or nothing;
    // without n, one such rule that refers to itself.
    void repeat(size_t at, uint64_t min, uint64_t max) {
        if (max < min) {
            fail(at, "the repetition ends at fewer than it begins with");
        }
        const uint64_t n_optional = max == NO_MAXIMUM ? 1 : max - min;
        take(at, min * item_ + n_optional * (item_ + 3), n_optional);
        item_ = std::max<uint64_t>(min, 1) * item_ + 1;
    }

    void take(size_t at, uint64_t n_elements, uint64_t n_rules) {
        memory_ += n_elements * sizeof(llama_grammar_element) +
                   n_rules * (MEMORY_OF_RULE + longest_name_);
        if (memory_ > MAX_MEMORY) {
            fail(at, "with its repetitions written out, the grammar takes more than " +
                         std::to_string(MAX_MEMORY / 1024 / 1024) + " MiB");
        }
    }

    std::string & source_;
    const bool    has_vocab_;
    size_t        at_           = 0;
    size_t        longest_name_ = 0; // of the rules so far: those made up begin with it
    uint64_t      item_         = 1; // elements that a repetition would repeat
    uint64_t      memory_       = 0;
};

// Where llama.cpp names a place, its message ends with all that follows there.
std::string located(const std::string & source, size_t rule, const std::string & message) {
    const size_t end = message.find(" at ");
    if (end != std::string::npos) {
        const size_t rest = message.size() - end - 4;
        if (rest <= source.size() &&
            source.compare(source.size() - rest, rest, message, end + 4) == 0) {
            return place(source, source.size() - rest) + message.substr(0, end);
        }
    }
    return "in the rule at " + place(source, rule) + message;
}

} // namespace

llama_grammar_parser parse_gbnf(std::string source, const llama_vocab * vocab) {
    gbnf_scan(source, vocab != nullptr).run();

    llama_grammar_parser parser(vocab);
    const char *         pos = source.c_str() + std::strspn(source.c_str(), " \t\r\n");
    while (*pos) {
        const auto rule = static_cast<size_t>(pos - source.c_str());
        try {
            pos = parser.parse_rule(pos);
        } catch (const std::out_of_range &) {
            throw gbnf_error(located(source, rule, "a number is too large"));
        } catch (const std::runtime_error & error) {
            throw gbnf_error(located(source, rule, error.what()));
        }
    }
    if (parser.rules.empty()) {
        throw gbnf_error("the grammar holds no rule");
    }
    for (const auto & [name, id] : parser.symbol_ids) {
        if (id >= parser.rules.size() || parser.rules[id].empty()) {
            throw gbnf_error("rule '" + name + "' is used, but not defined");
        }
    }
    return parser;
}

} // namespace pyllama
