"""Which quantization types another of about the same size outruns on a CPU."""

from __future__ import annotations

from collections.abc import Mapping

FASTER: Mapping[str, tuple[str, ...]] = {
    "q4_1": ("Q4_0", "Q4_K_M"),
    "q5_0": ("Q5_K_M",),
    "q5_1": ("Q5_K_M",),
}
"""By the type of most weights: file types whose weights llama.cpp rearranges as it loads them, so
that it computes several rows at once. benchmarks/RESULTS.md has their times."""

_REARRANGES = frozenset(
    ("haswell", "alderlake", "skylakex", "cannonlake", "cascadelake", "cooperlake", "icelake",
     "sapphirerapids", "zen4")
)  # fmt: skip
"""CPU variants that do so: x86 from AVX2 on. Others were not measured."""


def faster_types(sizes: Mapping[str, int], cpu_variant: str | None) -> tuple[str, ...]:
    """File types of about the same size that are markedly faster on this processor.

    Args:
        sizes: bytes of a model's tensors by their type.
        cpu_variant: as ``pyllama.cpu_variant`` names it.
    """
    if not sizes or cpu_variant not in _REARRANGES:
        return ()
    return FASTER.get(max(sizes, key=lambda name: sizes[name]), ())
