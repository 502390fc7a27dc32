#include "guard.hpp"

using pyllama::guarded;

extern "C" {

int32_t guarded_memory_clear(llama_memory_t memory, bool data) {
    return guarded([&] { llama_memory_clear(memory, data); });
}

int32_t guarded_memory_seq_rm(llama_memory_t memory, llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    return guarded(PYLLAMA_CAUGHT, [&] {
        return static_cast<int32_t>(llama_memory_seq_rm(memory, seq_id, p0, p1));
    });
}

int32_t guarded_memory_seq_cp(llama_memory_t memory, llama_seq_id src, llama_seq_id dst, llama_pos p0,
                              llama_pos p1) {
    return guarded([&] { llama_memory_seq_cp(memory, src, dst, p0, p1); });
}

int32_t guarded_memory_seq_keep(llama_memory_t memory, llama_seq_id seq_id) {
    return guarded([&] { llama_memory_seq_keep(memory, seq_id); });
}

int32_t guarded_memory_seq_add(llama_memory_t memory, llama_seq_id seq_id, llama_pos p0, llama_pos p1,
                               llama_pos delta) {
    return guarded([&] { llama_memory_seq_add(memory, seq_id, p0, p1, delta); });
}

int32_t guarded_memory_seq_div(llama_memory_t memory, llama_seq_id seq_id, llama_pos p0, llama_pos p1,
                               int32_t divisor) {
    return guarded([&] { llama_memory_seq_div(memory, seq_id, p0, p1, divisor); });
}

int32_t guarded_memory_seq_pos_min(llama_memory_t memory, llama_seq_id seq_id) {
    return guarded(PYLLAMA_CAUGHT, [&] { return llama_memory_seq_pos_min(memory, seq_id); });
}

int32_t guarded_memory_seq_pos_max(llama_memory_t memory, llama_seq_id seq_id) {
    return guarded(PYLLAMA_CAUGHT, [&] { return llama_memory_seq_pos_max(memory, seq_id); });
}

int32_t guarded_memory_can_shift(llama_memory_t memory) {
    return guarded(PYLLAMA_CAUGHT,
                   [&] { return static_cast<int32_t>(llama_memory_can_shift(memory)); });
}

} // extern "C"
