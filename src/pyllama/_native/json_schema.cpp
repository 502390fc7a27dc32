#include "apart.hpp"
#include "deep_stack.hpp"
#include "guard.hpp"

#include "common/json-schema-to-grammar.h"

#include <algorithm>
#include <set>

namespace {

// Ends build_grammar() before it reports to stderr.
struct probe_done {};

// Whether a regular expression can be said in a grammar. The converter tells so only on stderr,
// but the rule that it adds shows it: one that it cannot say becomes any string.
bool has_grammar(const std::string & pattern) {
    common_chat_schema_string schema;
    schema.pattern = pattern;
    bool any_string = false;
    try {
        build_grammar([&](const common_grammar_builder & builder) {
            const std::string rule = builder.add_schema("probe", schema);
            any_string = rule == "probe" && builder.add_rule("probe", "string") == "probe";
            throw probe_done();
        });
    } catch (const probe_done &) {
    }
    return !any_string;
}

// What the converter would not survive, or get wrong.
class schema_check {
  public:
    explicit schema_check(common_chat_schema_document & document) {
        for (auto & [ref, node] : document.refs) {
            visit(*node);
        }
        visit(*document.root);
    }

    // Patterns that the grammar leaves out.
    std::set<std::string> patterns;

  private:
    template <class Node> static Node & as(common_chat_schema & node) {
        return static_cast<Node &>(node);
    }

    void visit_all(std::vector<common_chat_schema_ptr> & nodes) {
        for (auto & node : nodes) {
            visit(*node);
        }
    }

    void visit(common_chat_schema & node) {
        switch (node.kind()) {
            case common_chat_schema::KIND_REF:
                return check_ref(as<common_chat_schema_ref>(node));
            case common_chat_schema::KIND_ANY_OF:
                return visit_all(as<common_chat_schema_any_of>(node).children);
            case common_chat_schema::KIND_ALL_OF:
                return visit_all(as<common_chat_schema_all_of>(node).children);
            case common_chat_schema::KIND_TUPLE:
                return visit_all(as<common_chat_schema_tuple>(node).items);
            case common_chat_schema::KIND_ARRAY:
                return visit(*as<common_chat_schema_array>(node).items);
            case common_chat_schema::KIND_OBJECT: {
                auto & object = as<common_chat_schema_object>(node);
                for (auto & property : object.properties) {
                    visit(*property.schema);
                }
                if (object.additional_properties) {
                    visit(*object.additional_properties);
                }
                return;
            }
            case common_chat_schema::KIND_STRING: {
                std::string & pattern = as<common_chat_schema_string>(node).pattern;
                if (!pattern.empty() && !has_grammar(pattern)) {
                    patterns.insert(pattern);
                    pattern.clear();
                }
                return;
            }
            default:
                return;
        }
    }

    void check_ref(const common_chat_schema_ref & node) {
        std::set<const common_chat_schema *> seen;
        for (const common_chat_schema * target = node.target;
             target && target->kind() == common_chat_schema::KIND_REF;
             target = static_cast<const common_chat_schema_ref *>(target)->target) {
            if (!seen.insert(target).second) {
                throw std::runtime_error("$ref " + node.ref + " leads back to itself");
            }
        }
        // Rules are named after references, with runs of other characters made into one dash.
        std::string rule;
        for (const char c : node.ref) {
            const bool kept = ('a' <= c && c <= 'z') || ('A' <= c && c <= 'Z') ||
                              ('0' <= c && c <= '9') || c == '-';
            if (kept) {
                rule += c;
            } else if (rule.empty() || rule.back() != '\0') {
                rule += '\0';
            }
        }
        std::replace(rule.begin(), rule.end(), '\0', '-');
        const auto [other, is_new] = rules_.emplace(rule, node.ref);
        if (!is_new && other->second != node.ref) {
            throw std::runtime_error("$ref " + node.ref + " and $ref " + other->second +
                                     " would get one rule for both: rename one of them");
        }
    }

    std::map<std::string, std::string> rules_;
};

} // namespace

// The converter recurses along the schema and its references, and over its names with std::regex.
extern "C" char * guarded_json_schema_to_grammar(const char * schema, size_t length) {
    constexpr size_t STACK_PER_BYTE  = 1024;
    constexpr size_t MEMORY_PER_BYTE = 64;
    return pyllama::guarded<char *>(nullptr, [&] {
        char * result = nullptr;
        const auto convert = [&] {
            auto document = common_chat_schema_from_json(common_json::parse(schema));
            const schema_check check(document);
            result = pyllama::copy_string(
                common_json{{"gbnf", json_schema_to_grammar(document)}, {"patterns", check.patterns}}
                    .dump());
        };
        // The JSON library takes memory to free an object, and ends the process where there is none.
        pyllama::run_with_memory(length * MEMORY_PER_BYTE, [&] {
            pyllama::run_with_stack(length * STACK_PER_BYTE, convert);
        });
        return result;
    });
}
