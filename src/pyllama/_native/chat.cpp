#include "guard.hpp"

#include "common/chat.h"

struct pyllama_chat {
    common_chat_templates_ptr templates;
};

namespace {

using pyllama::guarded;

template <class Text> char * guarded_text(Text && text) {
    return guarded<char *>(nullptr, [&] { return pyllama::copy_string(text()); });
}

common_chat_templates_inputs parse_inputs(const common_json & json) {
    common_chat_templates_inputs inputs;
    inputs.messages              = common_chat_msgs_parse_oaicompat(json.at("messages"));
    inputs.add_generation_prompt = json.value("add_generation_prompt", true);
    return inputs;
}

} // namespace

extern "C" {

pyllama_chat * guarded_chat_init(const llama_model * model, const char * source) {
    return guarded<pyllama_chat *>(nullptr, [&] {
        auto templates = common_chat_templates_init(model, source);
        return new pyllama_chat{std::move(templates)};
    });
}

int32_t guarded_chat_free(pyllama_chat * chat) {
    return guarded([&] { delete chat; });
}

char * guarded_chat_source(const pyllama_chat * chat) {
    return guarded_text([&] { return common_chat_templates_source(chat->templates.get()); });
}

char * guarded_chat_capabilities(const pyllama_chat * chat) {
    return guarded_text([&] {
        return common_json(common_chat_templates_get_caps(chat->templates.get())).dump();
    });
}

char * guarded_chat_apply(const pyllama_chat * chat, const char * inputs) {
    return guarded_text([&] {
        const auto params = common_chat_templates_apply(chat->templates.get(),
                                                        parse_inputs(common_json::parse(inputs)));
        return common_json{{"prompt", params.prompt}, {"stops", params.additional_stops}}.dump();
    });
}

} // extern "C"
