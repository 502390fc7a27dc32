#include "apart.hpp"
#include "deep_stack.hpp"
#include "guard.hpp"
#include "parser_depth.hpp"

#include "common/chat.h"

#include "common/chat-auto-parser.h"
#include "common/jinja/lexer.h"

#include <algorithm>
#include <cstring>
#include <string_view>

struct pyllama_chat {
    common_chat_templates_ptr templates;
    size_t                    prelude; // bytes put before the template's own source

    // Whether llama.cpp finds the format out by trying the template, again at each call.
    bool is_analyzed;
};

struct pyllama_chat_parser {
    common_chat_parser_params params;
    pyllama::parser_depth     depth;
};

namespace {

using pyllama::guarded;

// The engine recurses with the depth of what it reads, and nothing in it stops that. These bounds
// keep it far within a thread's stack; templates in use stay below 17 KB, 60 tokens in a block,
// 4 brackets and 13 statements deep.
constexpr size_t MAX_SOURCE       = 256 * 1024;
constexpr size_t MAX_BLOCK_TOKENS = 1000;
constexpr size_t MAX_BRACKETS     = 50;
constexpr size_t MAX_STATEMENTS   = 50;
constexpr size_t MAX_JSON_DEPTH   = 100;
constexpr size_t MAX_OUTPUT_DEPTH = 200;
constexpr size_t MAX_REFERENCES   = 200;
constexpr size_t MAX_SIGNS        = 512; // see check_name()

// What reading an answer takes of the stack beside its parser's recursion.
constexpr size_t PARSER_STACK = 256 * 1024;

// llama.cpp lets nobody set the time that strftime_now() tells, so a macro takes its place. Python
// gives what each directive stands for.
constexpr std::string_view STRFTIME_NOW =
    "{%- macro strftime_now(format) %}"
    "{%- set formatted = namespace(text=format) %}"
    "{%- for directive, text in pyllama_strftime | items %}"
    "{%- set formatted.text = formatted.text | replace(directive, text) %}"
    "{%- endfor %}"
    "{{- formatted.text }}"
    "{%- endmacro %}\n";

// The JSON library takes memory to free an object, and ends the process where there is none.
template <class Result, class Call> Result guarded_json(size_t n_bytes, Call && call) {
    constexpr size_t MEMORY_PER_BYTE = 64;
    return guarded<Result>(nullptr, [&] {
        Result result = nullptr;
        pyllama::run_with_memory(n_bytes * MEMORY_PER_BYTE, [&] { result = call(); });
        return result;
    });
}

template <class Text> char * guarded_text(size_t n_bytes, Text && text) {
    return guarded_json<char *>(n_bytes, [&] { return pyllama::copy_string(text()); });
}

void require(bool fits, const char * what, size_t limit) {
    if (!fits) {
        throw std::invalid_argument(std::string(what) + " " + std::to_string(limit));
    }
}

// How deep statements nest. An {% elif %} is parsed as an if within the else.
class statement_depth {
  public:
    void enter(const std::string & name) {
        static const std::vector<std::string> OPENERS = {"if",   "for",    "macro",
                                                         "call", "filter", "set"};
        if (std::find(OPENERS.begin(), OPENERS.end(), name) != OPENERS.end()) {
            open.push_back(0);
        } else if (open.empty()) {
            return;
        } else if (name.rfind("end", 0) == 0) {
            leave();
            return;
        } else if (name != "elif") {
            return;
        }
        open.back()++;
        depth++;
        require(depth <= MAX_STATEMENTS, "its statements nest deeper than", MAX_STATEMENTS);
    }

    void leave() {
        depth -= open.back();
        open.pop_back();
    }

  private:
    std::vector<size_t> open;
    size_t              depth = 0;
};

// Throws for a template whose parsing or execution would recurse too deep.
void check_depth(const std::vector<jinja::token> & tokens) {
    using jinja::token;
    statement_depth statements;
    size_t          block    = 0; // tokens since it began: a chain of operators nests like brackets
    size_t          brackets = 0;
    bool            open_set = false; // in a {% set %} that no equals sign has closed
    for (size_t i = 0; i < tokens.size(); i++) {
        switch (tokens[i].t) {
            case token::open_statement:
                if (i + 1 < tokens.size()) {
                    statements.enter(tokens[i + 1].value);
                    open_set = tokens[i + 1].value == "set";
                }
                block = brackets = 0;
                break;
            case token::open_expression:
                block = brackets = 0;
                break;
            case token::open_paren:
            case token::open_square_bracket:
            case token::open_curly_bracket:
                brackets++;
                require(brackets <= MAX_BRACKETS, "its brackets nest deeper than", MAX_BRACKETS);
                break;
            case token::close_paren:
            case token::close_square_bracket:
            case token::close_curly_bracket:
                brackets -= brackets > 0;
                break;
            case token::equals:
                if (open_set && brackets == 0) {
                    statements.leave();
                    open_set = false;
                }
                break;
            default:
                break;
        }
        block++;
        require(block <= MAX_BLOCK_TOKENS, "one of its blocks has more tokens than",
                MAX_BLOCK_TOKENS);
    }
}

// Throws for a template that does not parse, with the reason: llama.cpp would only log it.
void check_source(const std::string & source) {
    require(source.size() <= MAX_SOURCE, "its size in bytes is more than", MAX_SOURCE);
    const auto lexed = jinja::lexer().tokenize(source);
    check_depth(lexed.tokens);
    jinja::parse_from_tokens(lexed);
}

bool is_analyzed(const common_chat_templates * templates, const std::string & bos,
                 const std::string & eos) {
    const auto                    source = common_chat_templates_source(templates);
    const common_chat_template    parsed(source, bos, eos);
    autoparser::generation_params params;
    params.messages = common_json::array({common_json{{"role", "user"}, {"content", ""}}});
    try {
        return !common_chat_try_specialized_template(parsed, source, params);
    } catch (const std::exception &) {
        return false; // one of the known formats, which needs more than an empty message
    }
}

// How deep brackets nest outside of quotes.
size_t json_depth(const std::string & json) {
    size_t depth  = 0;
    size_t max    = 0;
    bool   quoted = false;
    for (size_t i = 0; i < json.size(); i++) {
        const char c = json[i];
        if (c == '"') {
            quoted = !quoted;
        } else if (quoted) {
            i += c == '\\';
        } else if (c == '[' || c == '{') {
            max = std::max(max, ++depth);
        } else if (c == ']' || c == '}') {
            depth -= depth > 0;
        }
    }
    return max;
}

common_json parse_json(const std::string & json, const char * what) {
    require(json_depth(json) <= MAX_JSON_DEPTH, what, MAX_JSON_DEPTH);
    return common_json::parse(json);
}

// How deep brackets nest in what a model wrote, quoted or not. A control character ends every
// nesting: no format holds one, while terminal colours open brackets that nothing closes.
size_t output_depth(const std::string & text) {
    size_t depth = 0;
    size_t max   = 0;
    for (const char c : text) {
        if (c == '[' || c == '{') {
            max = std::max(max, ++depth);
        } else if (c == ']' || c == '}') {
            depth -= depth > 0;
        } else if (static_cast<unsigned char>(c) < ' ' && c != '\n' && c != '\t' && c != '\r') {
            depth = 0;
        }
    }
    return max;
}

// A schema is followed deeper for each reference within another.
void check_references(const std::string & schema) {
    size_t count = 0;
    for (size_t at = 0; (at = schema.find("\"$ref\"", at)) != std::string::npos; at++) {
        count++;
    }
    require(count <= MAX_REFERENCES, "the schema holds more $ref than", MAX_REFERENCES);
}

// Names become rules, which std::regex finds: libstdc++'s recurses for each byte in a row that is no
// letter or digit of ASCII.
void check_name(const std::string & name) {
    size_t signs = 0;
    for (const char c : name) {
        const bool kept = ('a' <= c && c <= 'z') || ('A' <= c && c <= 'Z') || ('0' <= c && c <= '9');
        signs           = kept ? 0 : signs + 1;
        require(signs <= MAX_SIGNS,
                "a name in the tools or schema has more bytes in a row that are no letters or digits "
                "than",
                MAX_SIGNS);
    }
}

// The names of tools, properties and references.
void check_names(const common_json & value) {
    if (value.is_array()) {
        for (const auto & item : value) {
            check_names(item);
        }
    } else if (value.is_object()) {
        for (const auto & [key, item] : value.items()) {
            check_name(key);
            if ((key == "name" || key == "$ref") && item.is_string()) {
                check_name(item.get<std::string>());
            }
            check_names(item);
        }
    }
}

common_chat_templates_inputs parse_inputs(const std::string & text) {
    const auto json = parse_json(text, "the arguments nest deeper than");

    common_chat_templates_inputs inputs;
    inputs.messages = common_chat_msgs_parse_oaicompat(json.at("messages"));
    for (const auto & message : inputs.messages) {
        for (const auto & call : message.tool_calls) {
            require(json_depth(call.arguments) <= MAX_JSON_DEPTH,
                    "the arguments of a tool call nest deeper than", MAX_JSON_DEPTH);
        }
    }
    check_names(json.at("tools"));
    check_names(json.at("json_schema"));
    for (const auto & tool : json.at("tools")) {
        check_references(tool.dump());
    }
    inputs.tools       = common_chat_tools_parse_oaicompat(json.at("tools"));
    inputs.tool_choice = common_chat_tool_choice_parse_oaicompat(json.at("tool_choice"));
    inputs.parallel_tool_calls = json.at("parallel_tool_calls").get<bool>();
    if (!json.at("json_schema").is_null()) {
        inputs.json_schema = json.at("json_schema").dump();
        check_references(inputs.json_schema);
    }
    inputs.reasoning_format       = common_reasoning_format_from_name(json.at("reasoning_format"));
    inputs.enable_thinking        = json.at("enable_thinking").get<bool>();
    inputs.add_generation_prompt  = json.at("add_generation_prompt").get<bool>();
    inputs.continue_final_message = common_chat_continuation_parse(json.at("continue_final_message"));
    for (const auto & [name, value] : json.at("chat_template_kwargs").items()) {
        inputs.chat_template_kwargs[name] = value.dump();
    }
    return inputs;
}

const char * trigger_type_name(common_grammar_trigger_type type) {
    switch (type) {
        case COMMON_GRAMMAR_TRIGGER_TYPE_TOKEN:
            return "token";
        case COMMON_GRAMMAR_TRIGGER_TYPE_WORD:
            return "word";
        case COMMON_GRAMMAR_TRIGGER_TYPE_PATTERN:
            return "pattern";
        case COMMON_GRAMMAR_TRIGGER_TYPE_PATTERN_FULL:
            return "pattern_full";
    }
    throw std::invalid_argument("a grammar trigger of unknown type");
}

common_json triggers_to_json(const std::vector<common_grammar_trigger> & triggers) {
    auto json = common_json::array();
    for (const auto & trigger : triggers) {
        common_json item{{"type", trigger_type_name(trigger.type)}, {"value", trigger.value}};
        item["token"] = nullptr;
        if (trigger.token != LLAMA_TOKEN_NULL) {
            item["token"] = trigger.token;
        }
        json.push_back(item);
    }
    return json;
}

common_chat_msg message_from_json(const common_json & json) {
    common_chat_msg message;
    message.role              = "assistant";
    message.content           = json.at("content");
    message.reasoning_content = json.at("reasoning_content");
    for (const auto & call : json.at("tool_calls")) {
        message.tool_calls.push_back({call.at("name"), call.at("arguments"), call.at("id")});
    }
    return message;
}

common_json call_to_json(const common_chat_tool_call & call) {
    return {{"name", call.name}, {"arguments", call.arguments}, {"id", call.id}};
}

common_json message_to_json(const common_chat_msg & message) {
    auto calls = common_json::array();
    for (const auto & call : message.tool_calls) {
        calls.push_back(call_to_json(call));
    }
    return {{"content", message.content},
            {"reasoning_content", message.reasoning_content},
            {"tool_calls", calls}};
}

} // namespace

extern "C" {

// bos and eos: the texts of those tokens. llama.cpp would take them from the model, and leave out of
// the prompt what tokenizing adds: EOS, too, which ends no prompt of ours.
pyllama_chat * guarded_chat_init(const char * source, const char * bos, const char * eos) {
    return guarded_json<pyllama_chat *>(std::strlen(source), [&] {
        check_source(source);
        const bool tells_time = std::string_view(source).find("strftime_now") != std::string::npos;
        const std::string_view prelude = tells_time ? STRFTIME_NOW : "";

        auto       templates =
            common_chat_templates_init(nullptr, std::string(prelude) + source, bos, eos);
        const bool analyzed  = is_analyzed(templates.get(), bos, eos);
        return new pyllama_chat{std::move(templates), prelude.size(), analyzed};
    });
}

int32_t guarded_chat_free(pyllama_chat * chat) {
    return guarded([&] { delete chat; });
}

char * guarded_chat_describe(const pyllama_chat * chat) {
    return guarded_text(0, [&] {
        const auto * templates = chat->templates.get();
        return common_json{
            {"source", common_chat_templates_source(templates).substr(chat->prelude)},
            {"capabilities", common_chat_templates_get_caps(templates)},
            {"is_analyzed", chat->is_analyzed},
        }
            .dump_safe();
    });
}

// The prompt alone: all that depends on the messages, when llama.cpp finds the format out.
char * guarded_chat_render(const pyllama_chat * chat, const char * inputs) {
    return guarded_text(std::strlen(inputs), [&] {
        auto parsed               = parse_inputs(inputs);
        parsed.force_pure_content = true;

        const auto params = common_chat_templates_apply(chat->templates.get(), parsed);
        return common_json{{"prompt", params.prompt}, {"generation_prompt", params.generation_prompt}}
            .dump_safe();
    });
}

char * guarded_chat_apply(const pyllama_chat * chat, const char * inputs) {
    return guarded_text(std::strlen(inputs), [&] {
        const auto params = common_chat_templates_apply(chat->templates.get(), parse_inputs(inputs));
        return common_json{
            {"prompt", params.prompt},
            {"generation_prompt", params.generation_prompt},
            {"grammar", params.grammar},
            {"grammar_lazy", params.grammar_lazy},
            {"grammar_triggers", triggers_to_json(params.grammar_triggers)},
            {"preserved_tokens", params.preserved_tokens},
            {"stops", params.additional_stops},
            {"format", common_chat_format_name(params.format)},
            {"supports_thinking", params.supports_thinking},
            {"thinking_start_tag", params.thinking_start_tag},
            {"thinking_end_tags", params.thinking_end_tags},
            {"parser",
             {{"format", params.format},
              {"generation_prompt", params.generation_prompt},
              {"parser", params.parser}}},
        }
            .dump_safe();
    });
}

pyllama_chat_parser * guarded_chat_parser_init(const char * params) {
    return guarded_json<pyllama_chat_parser *>(std::strlen(params), [&] {
        const auto json   = common_json::parse(params);
        auto       parser = std::make_unique<pyllama_chat_parser>();
        parser->params.format =
            static_cast<common_chat_format>(json.at("format").get<int>());
        parser->params.generation_prompt = json.at("generation_prompt");
        const std::string arena          = json.at("parser");
        if (!arena.empty()) {
            const auto parts      = parse_json(arena, "the chat parser nests deeper than");
            parser->depth         = pyllama::parser_depth(parts);
            parser->params.parser = common_peg_arena::from_json(parts);
        }
        return parser.release();
    });
}

int32_t guarded_chat_parser_free(pyllama_chat_parser * parser) {
    return guarded([&] { delete parser; });
}

char * guarded_chat_parse(const pyllama_chat_parser * parser, const char * text, size_t length,
                          bool partial) {
    return guarded_text(length, [&] {
        const std::string input(text, length);
        require(output_depth(input) <= MAX_OUTPUT_DEPTH, "it nests brackets deeper than",
                MAX_OUTPUT_DEPTH);
        const size_t stack = parser->depth.stack_for(input) + PARSER_STACK;
        require(stack <= pyllama::DEEPEST_STACK, "its brackets may take more bytes of stack than",
                pyllama::DEEPEST_STACK);
        std::string message;
        pyllama::run_with_stack(stack, [&] {
            message = message_to_json(common_chat_parse(input, partial, parser->params)).dump_safe();
        });
        return message;
    });
}

char * guarded_chat_compute_diffs(const char * previous, const char * message) {
    return guarded_text(std::strlen(previous) + std::strlen(message), [&] {
        const auto diffs = common_chat_msg_diff::compute_diffs(
            message_from_json(common_json::parse(previous)),
            message_from_json(common_json::parse(message)));
        auto json = common_json::array();
        for (const auto & diff : diffs) {
            const bool has_call = diff.tool_call_index != std::string::npos;
            common_json item{
                {"reasoning_content_delta", diff.reasoning_content_delta},
                {"content_delta", diff.content_delta},
                {"tool_call_index", nullptr},
                {"tool_call_delta", nullptr},
            };
            if (has_call) {
                item["tool_call_index"] = diff.tool_call_index;
                item["tool_call_delta"] = call_to_json(diff.tool_call_delta);
            }
            json.push_back(item);
        }
        return json.dump_safe();
    });
}

} // extern "C"
