#include "prelude.h"

#include <cstring>

extern "C" {

// Where an array of strings ends, each of them a length of eight bytes and as many bytes of text;
// -1 if it does not end inside the file. A vocabulary has too many of them for a loop in Python.
int64_t pyllama_end_of_strings(const uint8_t * file, uint64_t size, uint64_t begin, uint64_t count) {
    uint64_t at = begin;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t length;
        if (at > size || size - at < sizeof(length)) {
            return -1;
        }
        std::memcpy(&length, file + at, sizeof(length));
        at += sizeof(length);
        if (length > size - at) {
            return -1;
        }
        at += length;
    }
    return static_cast<int64_t>(at);
}

} // extern "C"
