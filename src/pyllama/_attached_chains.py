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
    """Checks them, writes them into the parameters, and gives them to the context once made."""

    def __init__(
        self, model: Model, params: llama_context_params, chains: Mapping[int, SamplerChain] | None
    ) -> None:
        self._chains: list[SamplerChain] = []
        #: What the context stands on.
        self.handles: list[Handle[Any]] = []
        if chains is None:
            return
        if not isinstance(chains, Mapping):
            raise TypeError(f"samplers must map sequence ids to SamplerChains, got {chains!r}")
        self._configs = ffi.new("struct llama_sampler_seq_config[]", max(1, len(chains)))
        for config, (seq_id, chain) in zip(self._configs, chains.items(), strict=False):
            config.seq_id = integer("samplers' sequence id", seq_id, 0, params.n_seq_max - 1)
            if not isinstance(chain, SamplerChain):
                raise TypeError(f"samplers must hold pyllama.SamplerChain objects, got {chain!r}")
            chain._require_attachable(model)
            if chain in self._chains:
                raise ValueError(f"samplers must hold each chain once, got {chain!r} twice")
            handle = chain._open()
            config.sampler = lib.guarded_chain_get(handle.pointer, -1)  # the chain itself
            self._chains.append(chain)
            self.handles.append(handle)
        if chains:
            params.samplers, params.n_samplers = self._configs, len(chains)
            params.n_outputs_max_per_seq = 1

    def attach(self, context: ContextOutputs) -> None:
        for chain in self._chains:
            chain._attach(context)
