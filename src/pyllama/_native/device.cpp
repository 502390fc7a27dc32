#include "guard.hpp"

#include "common/common.h"
#include "ggml-rpc.h"

#include <filesystem>
#include <mutex>

#ifdef _WIN32
#    define WIN32_LEAN_AND_MEAN
#    define NOMINMAX
#    include <windows.h>
#else
#    include <dlfcn.h>
#endif

using pyllama::guarded;

namespace {

// The file that an object of static storage was loaded from; empty where the system cannot tell.
std::string file_of(const void * object) {
#ifdef _WIN32
    HMODULE module = nullptr;
    wchar_t path[32768];
    const DWORD flags =
        GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT;
    if (!GetModuleHandleExW(flags, static_cast<LPCWSTR>(object), &module) ||
        !GetModuleFileNameW(module, path, 32768)) {
        return "";
    }
    return std::filesystem::path(path).u8string();
#else
    Dl_info info;
    return dladdr(object, &info) && info.dli_fname ? info.dli_fname : "";
#endif
}

template <class Function> Function * rpc_function(const char * name) {
    const auto reg = ggml_backend_reg_by_name("RPC");
    const auto address = reg ? ggml_backend_reg_get_proc_address(reg, name) : nullptr;
    if (!address) {
        throw std::runtime_error("this build has no RPC backend");
    }
    return reinterpret_cast<Function *>(address);
}

} // namespace

extern "C" {

int32_t guarded_backend_init(const char * folder) {
    return guarded([&] {
        llama_backend_init();
        ggml_backend_load_all_from_path(folder);
    });
}

ggml_backend_reg_t guarded_backend_load(const char * path) {
    return guarded<ggml_backend_reg_t>(nullptr, [&] { return ggml_backend_load(path); });
}

int32_t guarded_backend_unload(ggml_backend_reg_t reg) {
    return guarded([&] { ggml_backend_unload(reg); });
}

int32_t guarded_dev_memory(ggml_backend_dev_t device, size_t * free, size_t * total) {
    return guarded([&] { ggml_backend_dev_memory(device, free, total); });
}

// NULL when it could not be reached.
ggml_backend_t guarded_dev_init(ggml_backend_dev_t device) {
    return guarded<ggml_backend_t>(nullptr, [&] { return ggml_backend_dev_init(device, nullptr); });
}

int32_t guarded_backend_free(ggml_backend_t backend) {
    return guarded([&] { ggml_backend_free(backend); });
}

int32_t guarded_dev_get_props(ggml_backend_dev_t device, ggml_backend_dev_props * props) {
    return guarded([&] { ggml_backend_dev_get_props(device, props); });
}

// NULL-terminated by a feature without a name; NULL when the backend reports none.
const ggml_backend_feature * guarded_reg_features(ggml_backend_reg_t reg) {
    return guarded<const ggml_backend_feature *>(nullptr, [&]() -> const ggml_backend_feature * {
        auto get_features = reinterpret_cast<ggml_backend_get_features_t>(
            ggml_backend_reg_get_proc_address(reg, "ggml_backend_get_features"));
        return get_features ? get_features(reg) : nullptr;
    });
}

// A backend's registry entry is a static object of its module.
char * guarded_reg_path(ggml_backend_reg_t reg) {
    return guarded<char *>(nullptr, [&] { return pyllama::copy_string(file_of(reg)); });
}

int32_t guarded_cpu_math_cores(void) {
    return guarded(PYLLAMA_CAUGHT, [] { return common_cpu_get_num_math(); });
}

// llama.cpp writes it into one buffer for all threads.
char * guarded_system_info(void) {
    static std::mutex one_at_a_time;
    return guarded<char *>(nullptr, [] {
        const std::lock_guard<std::mutex> lock(one_at_a_time);
        return pyllama::copy_string(llama_print_system_info());
    });
}

// NULL when the server offers no device.
ggml_backend_reg_t guarded_rpc_add_server(const char * endpoint) {
    return guarded<ggml_backend_reg_t>(nullptr, [&] {
        using add_server = decltype(ggml_backend_rpc_add_server);
        return rpc_function<add_server>("ggml_backend_rpc_add_server")(endpoint);
    });
}

// Returns only when the server could not start, or can no longer accept clients.
int32_t guarded_rpc_start_server(const char * endpoint, const char * cache_dir, size_t n_threads,
                                 size_t n_devices, ggml_backend_dev_t * devices) {
    return guarded([&] {
        using start_server = decltype(ggml_backend_rpc_start_server);
        rpc_function<start_server>("ggml_backend_rpc_start_server")(endpoint, cache_dir, n_threads,
                                                                    n_devices, devices);
    });
}

} // extern "C"
