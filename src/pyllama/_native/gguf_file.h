int64_t pyllama_end_of_strings(const uint8_t * file, uint64_t size, uint64_t begin, uint64_t count);
