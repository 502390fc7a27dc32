// llama.cpp looks for left recursion recursively and without remembering what it has seen, does
// not see it behind rules that are empty by way of others, and then expands such a rule without
// end. Here each of these is found beforehand, in linear time and without recursion.
#include "gbnf.hpp"

#include <algorithm>
#include <cstdio>

namespace pyllama {

namespace {

constexpr size_t MAX_DEPTH   = 4'000;      // of llama.cpp's recursion
constexpr double MAX_VISITS  = 10'000'000; // of a rule, in that recursion
constexpr double MAX_CHOICES = 50'000;     // ways to go on at one place

struct edge {
    uint32_t to;    // the rule that a text may begin with
    bool     grows; // something follows it, and is put aside while it is expanded
};

using graph = std::vector<std::vector<edge>>;

// Calls visit(begin, end) for each alternative of a rule.
template <class Visit> void for_each_alternative(const llama_grammar_rule & rule, Visit && visit) {
    auto begin = rule.begin();
    for (;;) {
        const auto end = std::find_if(begin, rule.end(), [](const llama_grammar_element & element) {
            return element.type == LLAMA_GRETYPE_ALT || element.type == LLAMA_GRETYPE_END;
        });
        visit(begin, end);
        if (end->type == LLAMA_GRETYPE_END) {
            return;
        }
        begin = end + 1;
    }
}

// Which rules have an empty alternative, written as such.
std::vector<bool> plainly_empty(const llama_grammar_rules & rules) {
    std::vector<bool> result(rules.size());
    for (size_t id = 0; id < rules.size(); id++) {
        for_each_alternative(rules[id], [&](auto begin, auto end) {
            result[id] = result[id] || begin == end;
        });
    }
    return result;
}

// Which rules match the empty text, in whatever way.
std::vector<bool> possibly_empty(const llama_grammar_rules & rules) {
    struct alternative {
        uint32_t rule;
        size_t   n_unknown; // of its rules are not known to match the empty text
    };
    std::vector<alternative>         alternatives;
    std::vector<std::vector<size_t>> waiting(rules.size());
    std::vector<uint32_t>            found;
    std::vector<bool>                result(rules.size());
    const auto                       mark = [&](uint32_t rule) {
        if (!result[rule]) {
            result[rule] = true;
            found.push_back(rule);
        }
    };
    for (uint32_t id = 0; id < rules.size(); id++) {
        for_each_alternative(rules[id], [&](auto begin, auto end) {
            if (!std::all_of(begin, end, [](const llama_grammar_element & element) {
                    return element.type == LLAMA_GRETYPE_RULE_REF;
                })) {
                return;
            }
            alternatives.push_back({id, static_cast<size_t>(end - begin)});
            for (auto element = begin; element != end; ++element) {
                waiting[element->value].push_back(alternatives.size() - 1);
            }
            if (begin == end) {
                mark(id);
            }
        });
    }
    while (!found.empty()) {
        const uint32_t rule = found.back();
        found.pop_back();
        for (const size_t index : waiting[rule]) {
            if (--alternatives[index].n_unknown == 0) {
                mark(alternatives[index].rule);
            }
        }
    }
    return result;
}

// From each rule to those that its text may begin with.
graph first_rules(const llama_grammar_rules & rules, const std::vector<bool> & empty) {
    graph result(rules.size());
    for (size_t id = 0; id < rules.size(); id++) {
        for_each_alternative(rules[id], [&](auto begin, auto end) {
            for (auto element = begin; element != end; ++element) {
                if (element->type != LLAMA_GRETYPE_RULE_REF) {
                    return;
                }
                result[id].push_back({element->value, element + 1 != end});
                if (!empty[element->value]) {
                    return;
                }
            }
        });
    }
    return result;
}

// How many characters or tokens each rule may begin with, not counting those of first_rules().
std::vector<double> first_terminals(const llama_grammar_rules & rules,
                                    const std::vector<bool> &    empty) {
    std::vector<double> result(rules.size());
    for (size_t id = 0; id < rules.size(); id++) {
        for_each_alternative(rules[id], [&](auto begin, auto end) {
            for (auto element = begin; element != end; ++element) {
                if (element->type != LLAMA_GRETYPE_RULE_REF) {
                    result[id]++;
                    return;
                }
                if (!empty[element->value]) {
                    return;
                }
            }
        });
    }
    return result;
}

// Groups of rules that begin with each other, each group before those that begin with it
// (Tarjan's algorithm, its stack written out).
std::vector<std::vector<uint32_t>> components(const graph & edges) {
    struct frame {
        uint32_t rule;
        size_t   next; // edge to follow
    };
    constexpr uint32_t                 UNSEEN = UINT32_MAX;
    std::vector<std::vector<uint32_t>> result;
    std::vector<uint32_t>              index(edges.size(), UNSEEN), lowest(edges.size());
    std::vector<uint32_t>              open;
    std::vector<bool>                  is_open(edges.size());
    std::vector<frame>                 path;
    uint32_t                           n_seen = 0;

    const auto enter = [&](uint32_t rule) {
        index[rule] = lowest[rule] = n_seen++;
        open.push_back(rule);
        is_open[rule] = true;
        path.push_back({rule, 0});
    };
    const auto close = [&](uint32_t rule) {
        auto & group = result.emplace_back();
        do {
            group.push_back(open.back());
            is_open[open.back()] = false;
            open.pop_back();
        } while (group.back() != rule);
    };
    for (uint32_t start = 0; start < edges.size(); start++) {
        if (index[start] != UNSEEN) {
            continue;
        }
        for (enter(start); !path.empty();) {
            const uint32_t rule = path.back().rule;
            if (path.back().next < edges[rule].size()) {
                const uint32_t to = edges[rule][path.back().next++].to;
                if (index[to] == UNSEEN) {
                    enter(to);
                } else if (is_open[to]) {
                    lowest[rule] = std::min(lowest[rule], index[to]);
                }
                continue;
            }
            path.pop_back();
            if (!path.empty()) {
                uint32_t & above = lowest[path.back().rule];
                above            = std::min(above, lowest[rule]);
            }
            if (lowest[rule] == index[rule]) {
                close(rule);
            }
        }
    }
    return result;
}

bool refers_to_itself(const graph & edges, uint32_t rule) {
    return std::any_of(edges[rule].begin(), edges[rule].end(),
                       [&](const edge & e) { return e.to == rule; });
}

// Rules that the parser made up are called after the one that they are in.
std::string quoted(const llama_grammar_parser & grammar, uint32_t rule) {
    const auto & ids   = grammar.symbol_ids;
    const auto   found = std::find_if(ids.begin(), ids.end(),
                                      [&](const auto & symbol) { return symbol.second == rule; });
    return "rule '" + found->first.substr(0, found->first.find('_')) + "'";
}

// What llama.cpp refuses by itself, and what it would take to find out.
void check_left_recursion(const llama_grammar_parser & grammar, const graph & edges) {
    std::vector<size_t> depth(edges.size());
    std::vector<double> visits(edges.size());
    double              total = 0;
    for (const auto & group : components(edges)) {
        const uint32_t rule = group.front();
        if (group.size() > 1 || refers_to_itself(edges, rule)) {
            throw gbnf_error(quoted(grammar, rule) + " is left-recursive: it begins with itself");
        }
        depth[rule]  = 1;
        visits[rule] = 1;
        for (const edge & e : edges[rule]) {
            depth[rule] = std::max(depth[rule], depth[e.to] + 1);
            visits[rule] += visits[e.to];
        }
        total += visits[rule];
        if (depth[rule] > MAX_DEPTH) {
            throw gbnf_error(quoted(grammar, rule) + " begins a chain of more than " +
                             std::to_string(MAX_DEPTH) + " rules that begin with the next one");
        }
        if (total > MAX_VISITS) {
            throw gbnf_error(quoted(grammar, rule) + " begins with too many combinations of rules");
        }
    }
}

// What llama.cpp does not see, and would expand without end, or for hours.
void check_expansion(const llama_grammar_parser & grammar, const graph & edges,
                     const std::vector<double> & terminals) {
    std::vector<size_t> group_of(edges.size());
    std::vector<double> choices(edges.size());
    size_t              n_groups = 0;
    for (const auto & group : components(edges)) {
        n_groups++;
        for (const uint32_t rule : group) {
            group_of[rule] = n_groups;
        }
        double sum = 0;
        for (const uint32_t rule : group) {
            sum += terminals[rule];
            for (const edge & e : edges[rule]) {
                if (group_of[e.to] != n_groups) {
                    sum += choices[e.to];
                } else if (e.grows) {
                    throw gbnf_error(quoted(grammar, rule) +
                                     " is left-recursive: it begins with itself after parts that "
                                     "may be empty");
                }
            }
        }
        for (const uint32_t rule : group) {
            choices[rule] = sum;
        }
        if (sum > MAX_CHOICES) {
            throw gbnf_error(quoted(grammar, group.front()) + " can begin in more than " +
                             std::to_string(static_cast<int>(MAX_CHOICES)) + " ways");
        }
    }
}

// A character as a grammar writes it whatever it is, such as "U+007A".
std::string code_point(uint32_t character) {
    char text[16];
    std::snprintf(text, sizeof text, "U+%04X", static_cast<unsigned>(character));
    return text;
}

// A range from z to a holds no character, and llama.cpp says nothing.
void check_ranges(const llama_grammar_parser & grammar) {
    for (uint32_t rule = 0; rule < grammar.rules.size(); rule++) {
        const auto & elements = grammar.rules[rule];
        for (size_t i = 1; i < elements.size(); i++) {
            if (elements[i].type == LLAMA_GRETYPE_CHAR_RNG_UPPER &&
                elements[i].value < elements[i - 1].value) {
                throw gbnf_error(quoted(grammar, rule) + " has the range " +
                                 code_point(elements[i - 1].value) + "-" +
                                 code_point(elements[i].value) + ", which ends before it begins");
            }
        }
    }
}

} // namespace

void check_root(const llama_grammar_parser & grammar, uint32_t root) {
    std::vector<bool>     seen(grammar.rules.size());
    std::vector<uint32_t> todo{root};
    seen[root] = true;
    while (!todo.empty()) {
        const uint32_t rule = todo.back();
        todo.pop_back();
        for (const llama_grammar_element & element : grammar.rules[rule]) {
            if (element.type == LLAMA_GRETYPE_RULE_REF) {
                if (!seen[element.value]) {
                    seen[element.value] = true;
                    todo.push_back(element.value);
                }
            } else if (element.type != LLAMA_GRETYPE_ALT && element.type != LLAMA_GRETYPE_END) {
                return;
            }
        }
    }
    throw gbnf_error(quoted(grammar, root) +
                     " describes the empty text alone: nothing could ever be written");
}

void check_gbnf(const llama_grammar_parser & grammar) {
    check_ranges(grammar);
    check_left_recursion(grammar, first_rules(grammar.rules, plainly_empty(grammar.rules)));
    const std::vector<bool> empty = possibly_empty(grammar.rules);
    check_expansion(grammar, first_rules(grammar.rules, empty),
                    first_terminals(grammar.rules, empty));
}

} // namespace pyllama
