// A line of text that repeats itself: whether it has to end, and how.
#include "grammar_budget.hpp"

#include "deep_stack.hpp"

#include <algorithm>

namespace pyllama {

// Whether the text repeats itself, so that it has to end.
bool grammar_budget::is_repeated() {
    if (grammar_.partial_utf8.n_remain > 0) {
        return repeats_;
    }
    if (repeats_) {
        repeats_ = lengths_.shortest(grammar_.stacks).text.size() > outside_;
    } else {
        repeats_ = ends_repetitions_ && repeats_line() && way_out();
    }
    return repeats_;
}

// Lines may be alike in a list, a table or a poem. A text in JSON has no lines.
bool grammar_budget::repeats_line() const {
    const size_t span = written_.span();
    if (span == 0 || n_written_ < std::max(repetition::TIMES * span, repetition::FEWEST)) {
        return false;
    }
    const bool ends_line =
        std::any_of(grammar_.stacks.begin(), grammar_.stacks.end(),
                    [](const auto & stack) { return stack.empty() || holds(stack.back(), '\n'); });
    const std::vector<llama_token> repeated = written_.last(span);
    return ends_line && is_text() &&
           std::none_of(repeated.begin(), repeated.end(), [&](llama_token token) {
               return piece(token).find('\n') != std::string::npos;
           });
}

// Finds what the shortest text has behind the present one. There is no way out of a block of code,
// whose lines may be alike, and none where the next text begins at once.
bool grammar_budget::way_out() {
    const std::string shortest = lengths_.shortest(grammar_.stacks).text;
    if (shortest.find("```") != std::string::npos) {
        return false;
    }
    const std::u32string characters = characters_of(shortest);
    const restored_place restored(grammar_);
    size_t               n = 0;
    run_with_stack(GRAMMAR_STACK, [&] {
        while (n < characters.size() && may_be_text()) {
            llama_grammar_accept(&grammar_, characters[n++]);
        }
    });
    if (!characters.empty() && may_be_text()) {
        return false;
    }
    outside_ = static_cast<uint32_t>(lengths_.shortest(grammar_.stacks).text.size());
    return true;
}

// Whether a word, and a space, may come next, if perhaps of different texts: also where a line
// begins that may be one of the text, or something else.
bool grammar_budget::may_be_text() const {
    const auto may = [&](uint32_t c) {
        return std::any_of(
            grammar_.stacks.begin(), grammar_.stacks.end(),
            [c](const auto & stack) { return !stack.empty() && holds(stack.back(), c); });
    };
    return may('e') && may(' ');
}

} // namespace pyllama
