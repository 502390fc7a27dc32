#include "parser_depth.hpp"

#include <algorithm>
#include <limits>
#include <set>
#include <stdexcept>
#include <vector>

namespace {

// Each parser is a function of its own, called through two others.
constexpr size_t BYTES_PER_CALL = 1024; // 524 for the largest, compiled by GCC 12

struct parser {
    std::string         type;
    std::vector<size_t> children;
    size_t              missing = 1; // children that must read a bracket for it to read one
    bool                reads_bracket = false;
};

bool opens(const common_json & json) {
    const std::string literal = json.at("literal");
    return literal.find_first_of("[{") != std::string::npos;
}

// Those that have one child, whatever else the JSON of others says.
bool has_child(const std::string & type) {
    static const std::set<std::string> TYPES = {"repetition", "and",    "not", "schema", "rule",
                                                "atomic",     "tag", "gbnf", "ac"};
    return TYPES.count(type) > 0;
}

parser to_parser(const common_json & json, const common_json & rules) {
    parser made;
    made.type = json.at("type").get<std::string>();
    if (made.type == "ref") {
        made.children = {rules.at(json.at("name").get<std::string>()).get<size_t>()};
    } else if (has_child(made.type)) {
        made.children = {json.at("child").get<size_t>()};
    } else if (made.type == "sequence" || made.type == "choice") {
        made.children = json.at("children").get<std::vector<size_t>>();
    }
    const bool skips = made.type == "and" || made.type == "not" ||
                       (made.type == "repetition" && json.at("min_count").get<int>() < 1);
    if (made.type == "choice") {
        made.missing = made.children.size();
    } else if (skips) {
        made.missing = std::numeric_limits<size_t>::max();
    }
    made.reads_bracket = made.type == "literal" && opens(json);
    return made;
}

std::vector<parser> to_parsers(const common_json & arena) {
    std::vector<parser> parsers;
    for (const auto & json : arena.at("parsers")) {
        parsers.push_back(to_parser(json, arena.at("rules")));
    }
    for (const auto & each : parsers) {
        for (const size_t child : each.children) {
            if (child >= parsers.size()) {
                throw std::invalid_argument("the chat parser has no part " + std::to_string(child));
            }
        }
    }
    return parsers;
}

// Finds out which of them read an opening bracket whenever they succeed.
void find_brackets(std::vector<parser> & parsers) {
    std::vector<std::vector<size_t>> parents(parsers.size());
    std::vector<size_t>              found;
    for (size_t id = 0; id < parsers.size(); id++) {
        for (const size_t child : parsers[id].children) {
            parents[child].push_back(id);
        }
        if (parsers[id].reads_bracket) {
            found.push_back(id);
        }
    }
    while (!found.empty()) {
        const size_t id = found.back();
        found.pop_back();
        for (const size_t parent : parents[id]) {
            auto & above = parsers[parent];
            if (!above.reads_bracket && --above.missing == 0) {
                above.reads_bracket = true;
                found.push_back(parent);
            }
        }
    }
}

using edges = std::vector<std::vector<size_t>>; // from each parser

// Those that it may come to without having read a bracket itself.
std::vector<size_t> first_children(const std::vector<parser> & parsers, const parser & from) {
    auto end = from.children.end();
    if (from.type == "sequence") {
        const auto reads = std::find_if(from.children.begin(), end,
                                        [&](size_t child) { return parsers[child].reads_bracket; });
        end = reads == end ? end : reads + 1;
    }
    return {from.children.begin(), end};
}

struct longest_path {
    size_t              length = 0;
    std::vector<size_t> rest; // those that a circle leads to
};

// From those that nothing leads to, on and on.
longest_path follow(const edges & to) {
    std::vector<size_t> n_from(to.size());
    std::vector<size_t> depth(to.size(), 1);
    std::vector<size_t> next;
    for (const auto & each : to) {
        for (const size_t other : each) {
            n_from[other]++;
        }
    }
    for (size_t id = 0; id < to.size(); id++) {
        if (n_from[id] == 0) {
            next.push_back(id);
        }
    }
    longest_path found;
    while (!next.empty()) {
        const size_t id = next.back();
        next.pop_back();
        found.length = std::max(found.length, depth[id]);
        for (const size_t other : to[id]) {
            depth[other] = std::max(depth[other], depth[id] + 1);
            if (--n_from[other] == 0) {
                next.push_back(other);
            }
        }
    }
    for (size_t id = 0; id < to.size(); id++) {
        if (n_from[id] > 0) {
            found.rest.push_back(id);
        }
    }
    return found;
}

edges reversed(const edges & to) {
    edges from(to.size());
    for (size_t id = 0; id < to.size(); id++) {
        for (const size_t other : to[id]) {
            from[other].push_back(id);
        }
    }
    return from;
}

edges between(const edges & to, const std::vector<size_t> & kept) {
    std::vector<bool> is_kept(to.size());
    for (const size_t id : kept) {
        is_kept[id] = true;
    }
    edges found(to.size());
    for (const size_t id : kept) {
        for (const size_t other : to[id]) {
            if (is_kept[other]) {
                found[id].push_back(other);
            }
        }
    }
    return found;
}

} // namespace

pyllama::parser_depth::parser_depth(const common_json & arena) {
    auto parsers = to_parsers(arena);
    find_brackets(parsers);

    edges all, first;
    for (const auto & each : parsers) {
        all.push_back(each.children);
        first.push_back(first_children(parsers, each));
    }
    if (!follow(first).rest.empty()) {
        throw std::invalid_argument("the chat parser calls itself without end");
    }
    // Whatever a circle leads to, and of that what leads to a circle.
    const auto before = follow(all);
    const auto behind = follow(reversed(between(all, before.rest)));
    once              = before.length + behind.length;
    turn              = follow(between(first, behind.rest)).length;
}

size_t pyllama::parser_depth::stack_for(const std::string & text) const {
    const size_t n_brackets = std::count_if(text.begin(), text.end(),
                                            [](char c) { return c == '[' || c == '{'; });
    return (once + turn * (n_brackets + 1)) * BYTES_PER_CALL;
}
