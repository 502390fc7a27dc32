"""Sampler chains that a context runs on its device (``llama_context_params.samplers``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pyllama._arguments import integer
from pyllama._handle import Handle
from pyllama._native._binding import ffi, lib
from pyllama.model import Model
from pyllama.outputs import ContextOutputs
from pyllama.sampler_chain import SamplerChain

if TYPE_CHECKING:
    from pyllama._native._binding import llama_context_params


class AttachedChains:
    """Checks them, writes them into the parameters, and attaches them to the new context.

    The caller of ``check`` and ``attach`` holds all chains' locks in between, so that no chain is
    closed or used meanwhile.
    """

    def __init__(self, chains: Mapping[int, SamplerChain] | None) -> None:
        if chains is not None and not isinstance(chains, Mapping):
            raise TypeError(f"samplers must map sequence ids to SamplerChains, got {chains!r}")
        self._chains = dict(chains or {})
        for chain in self._chains.values():
            if not isinstance(chain, SamplerChain):
                raise TypeError(f"samplers must hold pyllama.SamplerChain objects, got {chain!r}")
        #: What the context needs alive.
        self.handles: list[Handle[Any]] = []

    @property
    def in_order(self) -> list[SamplerChain]:
        """The chains, in the order in which all threads lock them."""
        return sorted(self._chains.values(), key=id)

    def check(self, model: Model, params: llama_context_params) -> None:
        """Refuse chains that cannot be attached."""
        self._configs = ffi.new("struct llama_sampler_seq_config[]", max(1, len(self._chains)))
        seen: list[SamplerChain] = []
        for config, (seq_id, chain) in zip(self._configs, self._chains.items(), strict=False):
            config.seq_id = integer("samplers' sequence id", seq_id, 0, params.n_seq_max - 1)
            chain._require_attachable(model)
            if chain in seen:
                raise ValueError(f"samplers must hold each chain once, got {chain!r} twice")
            seen.append(chain)
            handle = chain._open()
            config.sampler = lib.guarded_chain_get(handle.pointer, -1)  # the chain itself
            self.handles.append(handle)
        if seen:
            params.samplers, params.n_samplers = self._configs, len(seen)
            params.n_outputs_max_per_seq = 1

    def attach(self, context: ContextOutputs) -> None:
        for chain in self._chains.values():
            chain._attach(context)
