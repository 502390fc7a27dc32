#include "apart.hpp"
#include "ending.hpp"

#include <cerrno>
#include <cstdio>
#include <memory>
#include <system_error>

#ifdef _WIN32
#    include <io.h>
#else
#    include <unistd.h>
#endif

using pyllama::guarded;
using pyllama::guarded_apart;
using pyllama::guarded_free;
using pyllama::no_memory;

namespace {

struct close_file {
    void operator()(FILE * file) const { std::fclose(file); }
};

using file_ptr = std::unique_ptr<FILE, close_file>;

[[noreturn]] void throw_errno(const char * what) {
    throw std::system_error(errno, std::generic_category(), what);
}

// A stream of its own over the descriptor, so that closing it leaves the caller's open.
file_ptr open_descriptor(int fd) {
#ifdef _WIN32
    const int copy = _dup(fd);
    FILE * file    = copy < 0 ? nullptr : _fdopen(copy, "rb");
    if (!file && copy >= 0) {
        _close(copy);
    }
#else
    const int copy = dup(fd);
    FILE * file    = copy < 0 ? nullptr : fdopen(copy, "rb");
    if (!file && copy >= 0) {
        close(copy);
    }
#endif
    if (!file) {
        throw_errno("the file cannot be read");
    }
    return file_ptr(file);
}

// The caller's callback, called where Python knows the thread; and a load ends with Python.
struct progress_callback {
    const llama_model_params & given;

    static bool report(float fraction, void * self) {
        const llama_model_params & given   = static_cast<progress_callback *>(self)->given;
        bool                       goes_on = !pyllama::ending();
        if (goes_on && given.progress_callback) {
            pyllama::call_python([&] {
                goes_on = given.progress_callback(fraction, given.progress_callback_user_data);
            });
        }
        return goes_on;
    }
};

template <class Load> llama_model * load(const llama_model_params & given, Load && load) noexcept {
    return guarded_apart<llama_model *>(nullptr, no_memory::unwinds, [&] {
        progress_callback  progress{given};
        llama_model_params params          = given;
        params.progress_callback           = progress_callback::report;
        params.progress_callback_user_data = &progress;
        return load(params);
    });
}

void seek(FILE * file, int64_t offset) {
#ifdef _WIN32
    const int failed = _fseeki64(file, offset, SEEK_SET);
#else
    const int failed = fseeko(file, offset, SEEK_SET);
#endif
    if (failed) {
        throw_errno("no such position in the file");
    }
}

} // namespace

extern "C" {

llama_model * guarded_model_load_from_file(const char * path, const llama_model_params * params) {
    return load(*params, [&](const llama_model_params & with_progress) {
        return llama_model_load_from_file(path, with_progress);
    });
}

llama_model * guarded_model_load_from_splits(const char ** paths, size_t n_paths,
                                             const llama_model_params * params) {
    return load(*params, [&](const llama_model_params & with_progress) {
        return llama_model_load_from_splits(paths, n_paths, with_progress);
    });
}

llama_model * guarded_model_load_from_fd(int fd, int64_t offset, const llama_model_params * params) {
    return load(*params, [&](const llama_model_params & with_progress) {
        const file_ptr file = open_descriptor(fd);
        seek(file.get(), offset);
        return llama_model_load_from_file_ptr(file.get(), with_progress);
    });
}

int32_t guarded_model_save_to_file(const llama_model * model, const char * path) {
    return guarded([&] { llama_model_save_to_file(model, path); });
}

int32_t guarded_model_free(llama_model * model) {
    return guarded_free([&] { llama_model_free(model); });
}

int32_t guarded_model_desc(const llama_model * model, char * buffer, size_t size) {
    return guarded(PYLLAMA_CAUGHT, [&] { return llama_model_desc(model, buffer, size); });
}

int32_t guarded_model_meta_key(const llama_model * model, int32_t index, char * buffer, size_t size) {
    return guarded(PYLLAMA_CAUGHT,
                   [&] { return llama_model_meta_key_by_index(model, index, buffer, size); });
}

int32_t guarded_model_meta_val(const llama_model * model, int32_t index, char * buffer, size_t size) {
    return guarded(PYLLAMA_CAUGHT,
                   [&] { return llama_model_meta_val_str_by_index(model, index, buffer, size); });
}

// llama.cpp asks the first layer, and asserts that there is one: not so after vocab_only.
int32_t guarded_model_n_head(const llama_model * model) {
    return guarded(PYLLAMA_CAUGHT, [&] {
        return llama_model_n_layer(model) > 0 ? llama_model_n_head(model) : 0;
    });
}

int32_t guarded_model_n_head_kv(const llama_model * model) {
    return guarded(PYLLAMA_CAUGHT, [&] {
        return llama_model_n_layer(model) > 0 ? llama_model_n_head_kv(model) : 0;
    });
}

const char * guarded_model_chat_template(const llama_model * model, const char * name) {
    return guarded<const char *>(nullptr, [&] { return llama_model_chat_template(model, name); });
}

int32_t guarded_model_rope_type(const llama_model * model) {
    return guarded(PYLLAMA_CAUGHT,
                   [&] { return static_cast<int32_t>(llama_model_rope_type(model)); });
}

int32_t guarded_model_ftype(const llama_model * model) {
    return guarded(PYLLAMA_CAUGHT, [&] { return static_cast<int32_t>(llama_model_ftype(model)); });
}

ggml_backend_buffer_type * guarded_dev_buffer_type(ggml_backend_dev_t device) {
    return guarded<ggml_backend_buffer_type *>(
        nullptr, [&] { return ggml_backend_dev_buffer_type(device); });
}

} // extern "C"
