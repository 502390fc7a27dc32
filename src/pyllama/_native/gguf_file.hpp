// A GGUF file's header, read without its tensors and checked against the file's size.
#pragma once

#include "ggml-cpp.h"
#include "gguf.h"

#include <filesystem>
#include <stdexcept>
#include <string>

namespace pyllama {

class gguf_file {
  public:
    explicit gguf_file(const char * path) {
        ggml_context * context = nullptr;
        header.reset(gguf_init_from_file(path, {/*no_alloc*/ true, &context}));
        if (!header) {
            throw std::runtime_error("no GGUF file, or a damaged one");
        }
        tensors.reset(context);
        const uint64_t size = std::filesystem::file_size(std::filesystem::u8path(path));
        for (int64_t id = 0; id < count(); id++) {
            const uint64_t begin = offset(id);
            const uint64_t bytes = gguf_get_tensor_size(header.get(), id);
            if (begin > size || bytes > size - begin) {
                throw std::runtime_error("the file ends before the data of its tensor " + name(id));
            }
        }
    }

    int64_t count() const { return gguf_get_n_tensors(header.get()); }

    std::string name(int64_t id) const { return gguf_get_tensor_name(header.get(), id); }

    ggml_tensor * tensor(int64_t id) const {
        return ggml_get_tensor(tensors.get(), gguf_get_tensor_name(header.get(), id));
    }

    uint64_t offset(int64_t id) const {
        return gguf_get_data_offset(header.get()) + gguf_get_tensor_offset(header.get(), id);
    }

  private:
    gguf_context_ptr header;
    ggml_context_ptr tensors;
};

} // namespace pyllama
