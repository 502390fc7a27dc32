#include "apart.hpp"
#include "ending.hpp"
#include "guard_log.hpp"
#include "gguf_file.hpp"

#include "common/imatrix-loader.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <utility>
#include <vector>

using pyllama::gguf_file;
using pyllama::guarded;
using pyllama::guarded_apart;
using pyllama::no_memory;

// Names with their averages, as llama_model_quantize wants them.
struct pyllama_imatrix {
    std::vector<std::pair<std::string, std::vector<float>>> entries;
};

namespace {

// More than ggml_quantize_init() takes for any type.
constexpr size_t QUANTIZATION_TABLES = 32 << 20;

// llama.cpp announces each tensor by a line of the log, while no thread is at work.
bool announces_tensor(const std::string & line, int & index, int & count) {
    return std::sscanf(line.c_str(), "[%d/%d]", &index, &count) == 2 && count > 0;
}

// The loader of the older format allocates whatever a damaged file says.
void check_legacy_imatrix(const char * path) {
    std::ifstream in(std::filesystem::u8path(path), std::ios::binary | std::ios::ate);
    const int64_t size = in.tellg();
    in.seekg(0);
    auto read_count = [&](int32_t low, int64_t bytes_each) {
        int32_t count = 0;
        in.read(reinterpret_cast<char *>(&count), sizeof(count));
        if (!in || count < low || count * bytes_each > size - in.tellg()) {
            throw std::runtime_error("no imatrix file, or a damaged one");
        }
        return count;
    };
    const int32_t n_entries = read_count(1, 1);
    for (int32_t i = 0; i < n_entries; i++) {
        in.seekg(read_count(1, 1), std::ios::cur);
        read_count(0, 0);
        in.seekg(read_count(1, sizeof(float)) * sizeof(float), std::ios::cur);
    }
    if (in.tellg() < size) {
        read_count(0, 0);
        if (in.tellg() < size) {
            read_count(0, 1);
        }
    }
}

void check_imatrix(const char * path) {
    char          magic[4] = {};
    std::ifstream in(std::filesystem::u8path(path), std::ios::binary);
    in.read(magic, sizeof(magic));
    if (std::string(magic, sizeof(magic)) != "GGUF") {
        return check_legacy_imatrix(path);
    }
    const gguf_file file(path);
    for (int64_t id = 0; id < file.count(); id++) {
        if (file.tensor(id)->type != GGML_TYPE_F32 || !ggml_nelements(file.tensor(id))) {
            throw std::runtime_error("its tensor " + file.name(id) + " is empty or not of F32");
        }
    }
}

// The mean of each column, as llama-quantize makes it of the sums: 1 for experts never reached.
std::vector<float> mean_of(const common_imatrix_entry & entry, bool is_legacy) {
    std::vector<float> mean   = entry.sums;
    const size_t       counts = is_legacy ? 1 : entry.counts.size();
    if (!counts || mean.size() % counts) {
        throw std::runtime_error("its sums and counts do not fit each other");
    }
    const size_t columns = mean.size() / counts;
    for (size_t i = 0; i < mean.size(); i++) {
        const auto count = static_cast<float>(entry.counts[i / columns]);
        if (count > 0) {
            mean[i] /= count;
        } else if (!is_legacy) {
            mean[i] = 1;
        }
    }
    return mean;
}

void check_tensor_magnitude(std::ifstream & in, const gguf_file & file, int64_t id, float limit) {
    const ggml_tensor * tensor   = file.tensor(id);
    const auto          to_float = ggml_get_type_traits(tensor->type)->to_float;
    const bool          is_float = tensor->type == GGML_TYPE_F32;
    if ((!is_float && !to_float) || ggml_n_dims(tensor) < 2) {
        return;
    }
    const size_t       row_size = ggml_row_size(tensor->type, tensor->ne[0]);
    std::vector<char>  row(row_size);
    std::vector<float> values(tensor->ne[0]);
    in.seekg(static_cast<std::streamoff>(file.offset(id)));
    for (int64_t i = 0; i < ggml_nrows(tensor); i++) {
        if (!in.read(row.data(), static_cast<std::streamsize>(row_size))) {
            throw std::runtime_error("reading tensor " + file.name(id) + " failed");
        }
        if (is_float) {
            std::memcpy(values.data(), row.data(), row_size);
        } else {
            to_float(row.data(), values.data(), tensor->ne[0]);
        }
        for (const float value : values) {
            if (!(std::fabs(value) <= limit)) {
                throw std::runtime_error("tensor " + file.name(id) + " holds the value " +
                                         std::to_string(value));
            }
        }
    }
}

} // namespace

extern "C" {

// The lines of the log that tell what became of each tensor, for the caller to free.
char * guarded_model_quantize(const char * source, const char * target,
                              const llama_model_quantize_params * params, bool quiet,
                              llama_progress_callback progress, void * user_data) {
    return guarded_apart<char *>(nullptr, no_memory::unwinds, [&]() -> char * {
        // Its tables are made under a lock that a failure would leave locked.
        pyllama::require_memory(QUANTIZATION_TABLES);
        std::string           lines;
        pyllama::log_listener listener(quiet, [&](const std::string & line) {
            lines += line;
            lines += '\n';
            int index = 0, count = 0;
            if (!announces_tensor(line, index, count)) {
                return;
            }
            bool goes_on = !pyllama::ending();
            if (goes_on) {
                pyllama::call_python([&] {
                    goes_on = progress(static_cast<float>(index - 1) / count, user_data);
                });
            }
            if (!goes_on) {
                throw std::runtime_error("cancelled");
            }
        });
        const bool failed = llama_model_quantize(source, target, params) != 0;
        return failed ? nullptr : pyllama::copy_string(lines);
    });
}

int32_t guarded_check_gguf(const char * path) {
    return guarded([&] { gguf_file{path}; });
}

// Refuses a value beyond the limit in a tensor that may be quantized.
int32_t guarded_check_magnitude(const char * path, float limit) {
    return guarded([&] {
        const gguf_file file(path);
        std::ifstream   in(std::filesystem::u8path(path), std::ios::binary);
        for (int64_t id = 0; id < file.count(); id++) {
            check_tensor_magnitude(in, file, id, limit);
        }
    });
}

pyllama_imatrix * guarded_imatrix_load(const char * path) {
    return guarded_apart<pyllama_imatrix *>(nullptr, no_memory::unwinds, [&] {
        check_imatrix(path);
        common_imatrix loaded;
        if (!common_imatrix_load(path, loaded)) {
            throw std::runtime_error("no imatrix file, or a damaged one");
        }
        if (!loaded.is_legacy && !loaded.has_metadata) {
            throw std::runtime_error("it lacks the keys of an imatrix, such as imatrix.chunk_count");
        }
        auto imatrix = std::make_unique<pyllama_imatrix>();
        for (const auto & [name, entry] : loaded.entries) {
            imatrix->entries.emplace_back(name, mean_of(entry, loaded.is_legacy));
        }
        return imatrix.release();
    });
}

int32_t guarded_imatrix_free(pyllama_imatrix * imatrix) {
    return guarded([&] { delete imatrix; });
}

int32_t guarded_imatrix_count(const pyllama_imatrix * imatrix) {
    return static_cast<int32_t>(imatrix->entries.size());
}

const char * guarded_imatrix_name(const pyllama_imatrix * imatrix, int32_t index) {
    return guarded<const char *>(nullptr, [&] { return imatrix->entries.at(index).first.c_str(); });
}

const float * guarded_imatrix_values(const pyllama_imatrix * imatrix, int32_t index,
                                     size_t * size) {
    return guarded<const float *>(nullptr, [&] {
        const auto & values = imatrix->entries.at(index).second;
        *size               = values.size();
        return values.data();
    });
}

} // extern "C"
