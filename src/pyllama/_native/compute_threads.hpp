// Threads for computing: OpenMP ends the process where it cannot start one.
#pragma once

#include <cstdint>

namespace pyllama {

// Throws pyllama::refused unless this thread can compute with n_threads, itself among them.
// OpenMP keeps those of the last computation: it is only tried when more are wanted.
void require_compute_threads(int32_t n_threads);

} // namespace pyllama
