#include "registers.hpp"

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#ifdef _MSC_VER
#include <intrin.h>
#endif
#define PYLLAMA_VECTOR_REGISTERS 1
#endif

#ifdef PYLLAMA_VECTOR_REGISTERS

namespace {

bool has_avx() {
#ifdef _MSC_VER
    constexpr int AVX_AND_OSXSAVE = 1 << 28 | 1 << 27;
    int           registers[4];
    __cpuid(registers, 1);
    return (registers[2] & AVX_AND_OSXSAVE) == AVX_AND_OSXSAVE;
#else
    return __builtin_cpu_supports("avx");
#endif
}

#if defined(__GNUC__) || defined(__clang__)
__attribute__((target("avx")))
#endif
void clear_upper_halves() {
    _mm256_zeroupper();
}

} // namespace

void pyllama::tidy_registers() {
    static const bool avx = has_avx();
    if (avx) {
        clear_upper_halves();
    }
}

#else

void pyllama::tidy_registers() {}

#endif
