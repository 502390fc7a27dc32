// llama.cpp's kernels leave something in the upper halves of vector registers. Until those are
// cleared, code that uses the lower halves (ours, its samplers, Python's) is up to 4 times slower.
#pragma once

namespace pyllama {

void tidy_registers();

} // namespace pyllama
