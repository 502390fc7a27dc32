#include "kept_tokens.hpp"

namespace {

constexpr size_t MOST_BYTES   = size_t(4) << 20; // of all that is kept
constexpr size_t LONGEST_TEXT = size_t(64) << 10;
constexpr size_t ENTRY_BYTES  = 256; // what the two containers take for each

} // namespace

namespace pyllama {

size_t kept_tokens::entry::size() const {
    return text.size() + tokens.size() * sizeof(llama_token) + ENTRY_BYTES;
}

bool kept_tokens::find(std::string_view text, std::vector<llama_token> & tokens) {
    const std::unique_lock lock(mutex, std::try_to_lock);
    if (!lock) {
        return false;
    }
    const auto place = places.find(text);
    if (place == places.end()) {
        return false;
    }
    entries.splice(entries.begin(), entries, place->second);
    const auto & known = place->second->tokens;
    tokens.insert(tokens.end(), known.begin(), known.end());
    return true;
}

void kept_tokens::keep(std::string_view text, const std::vector<llama_token> & tokens,
                       size_t begin) {
    if (text.size() > LONGEST_TEXT) {
        return;
    }
    std::list<entry> made;
    made.push_back({std::string(text), {tokens.data() + begin, tokens.data() + tokens.size()}});
    const std::unique_lock lock(mutex, std::try_to_lock);
    if (!lock || !places.try_emplace(made.front().text, made.begin()).second) {
        return;
    }
    n_bytes += made.front().size();
    entries.splice(entries.begin(), made);
    while (n_bytes > MOST_BYTES) {
        n_bytes -= entries.back().size();
        places.erase(entries.back().text);
        entries.pop_back();
    }
}

} // namespace pyllama
