#include "guard.hpp"

#include <cstring>
#include <vector>

using pyllama::guarded;

namespace {

// Bytes that are no state of this context.
struct mismatch : std::runtime_error {
    mismatch(size_t at, const std::string & message) : std::runtime_error(message), offset(at) {}
    size_t offset;
};

// Reads bytes that nobody vouches for.
class reader {
  public:
    reader(const uint8_t * data, size_t size) : data(data), size(size) {}

    size_t left() const { return size - offset; }
    size_t position() const { return offset; }

    template <class T> T read(const char * what) {
        T value;
        if (sizeof(value) > left()) {
            fail(std::string("it ends within ") + what);
        }
        std::memcpy(&value, data + offset, sizeof(value));
        offset += sizeof(value);
        return value;
    }

    const uint8_t * skip(uint64_t count, uint64_t each, const char * what) {
        if (each != 0 && count > left() / each) {
            fail(std::string("it ends within ") + what);
        }
        const uint8_t * begin = data + offset;
        offset += count * each;
        return begin;
    }

    [[noreturn]] void fail(const std::string & message) const {
        throw mismatch(offset, message + " (at byte " + std::to_string(offset) + ")");
    }

    void require(bool condition, const std::string & message) const {
        if (!condition) {
            fail(message);
        }
    }

  private:
    const uint8_t * data;
    size_t          size;
    size_t          offset = 0;
};

// llama.cpp writes one section for each part of the memory (full attention, sliding window,
// recurrent), with nothing that names them. It checks types and sizes of tensors when it reads,
// but takes counts, positions and sequence ids as they come; those are checked here. How long a
// section is depends on the model's layers, so the ways to read it are tried until one fits.
class layout {
  public:
    // The keys and values of one sequence: where they stand among the memories of all.
    struct section {
        size_t   begin, end;               // of all memories, behind their number
        size_t   filled_begin, filled_end; // of the one that is not empty; nothing if all are
        uint32_t n_stream;
    };

    layout(const char * architecture, const pyllama_state_expected & expected)
        : architecture(architecture), expected(expected),
          n_stream(expected.kv_unified ? 1 : expected.n_seq_max) {}

    void walk(reader at) {
        found.clear();
        if (expected.whole) {
            name(at);
        }
        sections(at, 0);
    }

    // The bytes of a sequence that were walked, as a context with as many memories as this one
    // writes them.
    std::vector<uint8_t> refitted(const uint8_t * data, size_t size) const {
        std::vector<uint8_t> out;
        out.reserve(size + found.size() * n_stream * sizeof(uint32_t));
        size_t done = 0;
        for (const section & one : found) {
            const uint32_t n_filled = one.filled_end > one.filled_begin ? 1 : 0;
            const uint32_t count    = n_stream;
            const auto *   number   = reinterpret_cast<const uint8_t *>(&count);
            out.insert(out.end(), data + done, data + one.begin - sizeof(count));
            out.insert(out.end(), number, number + sizeof(count));
            out.insert(out.end(), data + one.filled_begin, data + one.filled_end);
            out.resize(out.size() + (n_stream - n_filled) * sizeof(uint32_t), 0);
            done = one.end;
        }
        out.insert(out.end(), data + done, data + size);
        return out;
    }

    bool fits_as_it_is() const {
        for (const section & one : found) {
            if (one.n_stream != n_stream) {
                return false;
            }
        }
        return true;
    }

  private:
    static constexpr int      MAX_ATTENTION_SECTIONS = 3;
    static constexpr uint32_t MAX_LAYERS             = 4096;

    const std::string              architecture;
    const pyllama_state_expected & expected;
    const uint32_t                 n_stream;
    std::vector<section>           found;

    void name(reader & at) const {
        const auto length = at.read<uint32_t>("the name of the architecture");
        at.require(length == architecture.size(), "it is of another architecture, or no state");
        const uint8_t * found = at.skip(length, 1, "the name of the architecture");
        at.require(std::memcmp(found, architecture.data(), length) == 0,
                   "it is of another architecture");
    }

    // Any ways to read what begins here, as far as the end.
    void sections(const reader & at, int n_read) {
        const bool attention_read = n_read > 0 || !expected.attention || expected.partial_only;
        if (at.left() == 0 && !expected.recurrent && (n_read > 0 || !expected.attention)) {
            return;
        }
        mismatch furthest(0, "it holds more than this model's memory");
        auto     fits = [&](auto && attempt) {
            const size_t n_found = found.size();
            try {
                attempt();
                return true;
            } catch (const mismatch & wrong) {
                if (wrong.offset >= furthest.offset) {
                    furthest = wrong;
                }
                found.resize(n_found);
                return false;
            }
        };
        if (expected.attention && n_read < MAX_ATTENTION_SECTIONS) {
            for (const bool has_values : {true, false}) {
                if (fits([&] {
                        reader next = at;
                        attention(next, has_values);
                        sections(next, n_read + 1);
                    })) {
                    return;
                }
            }
        }
        if (expected.recurrent && attention_read && fits([&] { recurrent(at); })) {
            return;
        }
        throw furthest;
    }

    // Keys and values (MLA keeps no values), as llama_kv_cache::state_write() writes them.
    void attention(reader & at, bool has_values) {
        const auto n_found    = at.read<uint32_t>("the number of memories");
        bool       any_filled = false;
        // A sequence alone can be set among any number of others.
        at.require(expected.whole ? n_found == n_stream
                                  : n_found >= 1 && n_found <= llama_max_parallel_sequences(),
                   "it is of a context with " + std::to_string(n_found) +
                       " separate memories, this one has " + std::to_string(n_stream));
        section one = {at.position(), 0, at.position(), at.position(), n_found};
        for (uint32_t stream = 0; stream < n_found; ++stream) {
            const size_t begin   = at.position();
            const auto   n_cells = at.read<uint32_t>("the number of tokens");
            if (n_cells == 0) {
                continue;
            }
            at.require(n_cells <= expected.n_ctx_seq,
                       "it holds " + std::to_string(n_cells) + " tokens, here is room for " +
                           std::to_string(expected.n_ctx_seq));
            at.require(expected.whole || !any_filled, "it holds more than one sequence");
            any_filled = true;
            for (uint32_t cell = 0; cell < n_cells; ++cell) {
                attention_cell(at, stream);
            }
            tensors(at, n_cells, has_values);
            one.filled_begin = begin;
            one.filled_end   = at.position();
        }
        one.end = at.position();
        found.push_back(one);
    }

    void attention_cell(reader & at, uint32_t stream) const {
        position(at);
        const auto n_seq_id = at.read<uint32_t>("a token's sequences");
        at.require(n_seq_id >= 1 && n_seq_id <= (expected.whole ? expected.n_seq_max : 1),
                   "a token belongs to " + std::to_string(n_seq_id) + " sequences");
        if (expected.cell_positions) {
            at.skip(2, sizeof(llama_pos), "a token's positions");
            const auto token = at.read<llama_token>("a token");
            at.require(token >= LLAMA_TOKEN_NULL && token < expected.n_vocab,
                       "a token is outside the vocabulary");
        }
        llama_seq_id before = -1;
        for (uint32_t i = 0; i < n_seq_id; ++i) {
            const auto seq_id = at.read<llama_seq_id>("a token's sequences");
            if (expected.whole) {
                at.require(seq_id > before && uint32_t(seq_id) < expected.n_seq_max,
                           "a token belongs to sequence " + std::to_string(seq_id));
                at.require(n_stream == 1 || uint32_t(seq_id) == stream,
                           "a token is in the memory of another sequence");
                before = seq_id;
            }
        }
    }

    void tensors(reader & at, uint32_t n_cells, bool has_values) const {
        const auto transposed = at.read<uint32_t>("the layout of values");
        const auto n_layer    = at.read<uint32_t>("the number of layers");
        at.require(transposed <= 1 && n_layer <= MAX_LAYERS, "its layers cannot be read");
        for (uint32_t layer = 0; layer < n_layer; ++layer) {
            rows(at, n_cells);
        }
        for (uint32_t layer = 0; has_values && layer < n_layer; ++layer) {
            if (!transposed) {
                rows(at, n_cells);
                continue;
            }
            type(at);
            const uint64_t element = at.read<uint32_t>("the size of a value");
            const uint64_t n_embd  = at.read<uint32_t>("the number of values");
            at.skip(n_cells, element * n_embd, "values");
        }
    }

    // The last section: one state for each sequence, in every recurrent layer up to the end.
    void recurrent(reader at) const {
        const auto n_cells = at.read<uint32_t>("the number of states");
        at.require(n_cells <= (expected.whole ? expected.n_seq_max : 1),
                   "it holds the states of " + std::to_string(n_cells) + " sequences");
        std::vector<bool> seen(expected.n_seq_max, false);
        for (uint32_t cell = 0; cell < n_cells; ++cell) {
            position(at);
            const auto n_seq_id = at.read<uint32_t>("a state's sequences");
            at.require(expected.whole ? n_seq_id >= 1 && n_seq_id <= expected.n_seq_max
                                      : n_seq_id == 0,
                       "a state belongs to " + std::to_string(n_seq_id) + " sequences");
            for (uint32_t i = 0; i < n_seq_id; ++i) {
                const auto seq_id = at.read<llama_seq_id>("a state's sequences");
                at.require(seq_id >= 0 && uint32_t(seq_id) < expected.n_seq_max && !seen[seq_id],
                           "a state belongs to sequence " + std::to_string(seq_id));
                seen[seq_id] = true;
            }
        }
        const auto transposed = at.read<uint32_t>("the layout of states");
        const auto n_layer    = at.read<uint32_t>("the number of layers");
        at.require(transposed == 0 && n_layer <= MAX_LAYERS, "its layers cannot be read");
        while (at.left() > 0) {
            rows(at, n_cells);
        }
    }

    static void position(reader & at) {
        const auto pos = at.read<llama_pos>("a position");
        at.require(pos >= 0 && pos < INT32_MAX, "a position is " + std::to_string(pos));
    }

    static void type(reader & at) {
        const auto found = at.read<int32_t>("a tensor's type");
        at.require(found >= 0 && found < GGML_TYPE_COUNT, "a tensor's type is unknown");
    }

    static void rows(reader & at, uint32_t n_cells) {
        type(at);
        const auto row = at.read<uint64_t>("the size of a row");
        at.skip(n_cells, row, "a tensor");
    }
};

uint64_t rotate(uint64_t value, int bits) {
    return (value << bits) | (value >> (64 - bits));
}

uint64_t load(const uint8_t * data) {
    uint64_t value;
    std::memcpy(&value, data, sizeof(value));
    return value;
}

} // namespace

extern "C" {

// Why these bytes cannot be given to llama.cpp, "" if they can.
char * guarded_state_problem(const uint8_t * data, size_t size, const char * architecture,
                             const pyllama_state_expected * expected) {
    return guarded<char *>(nullptr, [&] {
        try {
            layout(architecture, *expected).walk(reader(data, size));
        } catch (const mismatch & found) {
            return pyllama::copy_string(found.what());
        }
        return pyllama::copy_string("");
    });
}

// The bytes of a sequence as this context would have written them, whose number of memories may
// be another: their length, after writing them if there is room. 0 where they are so already.
int64_t guarded_state_refit(const uint8_t * data, size_t size, const char * architecture,
                            const pyllama_state_expected * expected, uint8_t * out, size_t room) {
    return guarded<int64_t>(PYLLAMA_CAUGHT, [&]() -> int64_t {
        layout sections(architecture, *expected);
        sections.walk(reader(data, size));
        if (sections.fits_as_it_is()) {
            return 0;
        }
        const std::vector<uint8_t> bytes = sections.refitted(data, size);
        if (bytes.size() <= room) {
            std::memcpy(out, bytes.data(), bytes.size());
        }
        return int64_t(bytes.size());
    });
}

// Four multiplications in flight, so that it keeps up with memory. Each step can be undone, so
// that a change within eight bytes always changes the result.
uint64_t pyllama_state_checksum(const uint8_t * data, size_t size, uint64_t seed) {
    constexpr uint64_t A = 0x9E3779B185EBCA87, B = 0xC2B2AE3D27D4EB4F;

    uint64_t        lanes[4] = {A, B, ~A, ~B};
    const uint8_t * end      = data + size / 32 * 32;
    for (const uint8_t * at = data; at < end; at += 32) {
        for (int lane = 0; lane < 4; ++lane) {
            lanes[lane] = rotate(lanes[lane] + load(at + 8 * lane) * B, 31) * A;
        }
    }
    uint8_t tail[32] = {};
    if (size % 32) {
        std::memcpy(tail, end, size % 32);
    }
    uint64_t sum = size ^ rotate(seed, 32);
    for (int lane = 0; lane < 4; ++lane) {
        sum = rotate((sum ^ lanes[lane]) * A, 29);
        sum = rotate((sum ^ load(tail + 8 * lane)) * B, 33);
    }
    return (sum ^ (sum >> 32)) * A;
}

int64_t guarded_state_get_size(llama_context * ctx) {
    return guarded<int64_t>(PYLLAMA_CAUGHT, [&]() -> int64_t { return llama_state_get_size(ctx); });
}

int64_t guarded_state_get_data(llama_context * ctx, uint8_t * data, size_t size) {
    return guarded<int64_t>(PYLLAMA_CAUGHT,
                            [&]() -> int64_t { return llama_state_get_data(ctx, data, size); });
}

int64_t guarded_state_set_data(llama_context * ctx, const uint8_t * data, size_t size) {
    return guarded<int64_t>(PYLLAMA_CAUGHT,
                            [&]() -> int64_t { return llama_state_set_data(ctx, data, size); });
}

int32_t guarded_state_save_file(llama_context * ctx, const char * path, const llama_token * tokens,
                                size_t n_tokens) {
    return guarded(PYLLAMA_CAUGHT, [&]() -> int32_t {
        return llama_state_save_file(ctx, path, tokens, n_tokens);
    });
}

int64_t guarded_state_seq_get_size(llama_context * ctx, llama_seq_id seq_id, uint32_t flags) {
    return guarded<int64_t>(PYLLAMA_CAUGHT, [&]() -> int64_t {
        return llama_state_seq_get_size_ext(ctx, seq_id, flags);
    });
}

int64_t guarded_state_seq_get_data(llama_context * ctx, uint8_t * data, size_t size,
                                   llama_seq_id seq_id, uint32_t flags) {
    return guarded<int64_t>(PYLLAMA_CAUGHT, [&]() -> int64_t {
        return llama_state_seq_get_data_ext(ctx, data, size, seq_id, flags);
    });
}

int64_t guarded_state_seq_set_data(llama_context * ctx, const uint8_t * data, size_t size,
                                   llama_seq_id seq_id, uint32_t flags) {
    return guarded<int64_t>(PYLLAMA_CAUGHT, [&]() -> int64_t {
        return llama_state_seq_set_data_ext(ctx, data, size, seq_id, flags);
    });
}

int64_t guarded_state_seq_save_file(llama_context * ctx, const char * path, llama_seq_id seq_id,
                                    const llama_token * tokens, size_t n_tokens) {
    return guarded<int64_t>(PYLLAMA_CAUGHT, [&]() -> int64_t {
        return llama_state_seq_save_file(ctx, path, seq_id, tokens, n_tokens);
    });
}

} // extern "C"
