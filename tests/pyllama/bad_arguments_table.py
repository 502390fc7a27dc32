"""The rows of bad_arguments: for each public callable, how it is called."""

from __future__ import annotations

import numpy as np
from bad_arguments import MESSAGES, PROMPT, Row

import pyllama
from pyllama import Batch, Context, Sampler

_ZEROS = np.zeros((1, 32), np.float32)

ROWS: dict[str, Row] = {
    # Models
    "Model": lambda w: (pyllama.Model, {"path": w.model_path}),
    "Model.from_splits": lambda w: (pyllama.Model.from_splits, {"paths": [w.model_path]}),
    "Model.from_file": lambda w: (
        pyllama.Model.from_file,
        {"file": w.keep(open(w.model_path, "rb")), "offset": 0},  # noqa: SIM115  (w closes it)
    ),
    "Model.from_bytes": lambda w: (
        pyllama.Model.from_bytes,
        {"data": w.model_path.read_bytes()},
    ),
    "Model.chat_template": lambda w: (w.model.chat_template, {}),
    "Model.save": lambda w: (w.model.save, {"path": w.folder / "saved"}),
    "Model.close": lambda w: (w.model.close, {}),
    "tensor_infos": lambda w: (pyllama.tensor_infos, {"path": w.model_path}),
    "converter_script": lambda w: (pyllama.converter_script, {"kind": "lora"}),
    # Vocabularies
    "Vocab.tokenize": lambda w: (w.model.vocab.tokenize, {"text": "hello"}),
    "Vocab.tokenize_array": lambda w: (w.model.vocab.tokenize_array, {"text": "hello"}),
    "Vocab.tokenize_prompt": lambda w: (w.model.vocab.tokenize_prompt, {"text": "hello"}),
    "Vocab.detokenize": lambda w: (w.model.vocab.detokenize, {"tokens": PROMPT}),
    "Vocab.detokenize_bytes": lambda w: (w.model.vocab.detokenize_bytes, {"tokens": PROMPT}),
    "Vocab.token_to_piece": lambda w: (w.model.vocab.token_to_piece, {"token": 1}),
    "Vocab.get_text": lambda w: (w.model.vocab.get_text, {"token": 1}),
    "Vocab.get_score": lambda w: (w.model.vocab.get_score, {"token": 1}),
    "Vocab.get_attr": lambda w: (w.model.vocab.get_attr, {"token": 1}),
    "Vocab.is_eog": lambda w: (w.model.vocab.is_eog, {"token": 1}),
    "Vocab.is_control": lambda w: (w.model.vocab.is_control, {"token": 1}),
    "Detokenizer": lambda w: (pyllama.Detokenizer, {"vocab": w.model.vocab}),
    "Detokenizer.push": lambda w: (pyllama.Detokenizer(w.model.vocab).push, {"token": 1}),
    "Detokenizer.flush": lambda w: (pyllama.Detokenizer(w.model.vocab).flush, {}),
    # Contexts
    "Context": lambda w: (Context, {"model": w.model, "n_ctx": 64}),
    "ContextParams": lambda w: (pyllama.ContextParams, {"n_ctx": 64}),
    "Context.decode": lambda w: (w.context.decode, {"batch": Batch.from_tokens([1], pos=3)}),
    "Context.encode": lambda w: (w.context.encode, {"batch": Batch.from_tokens([1], pos=3)}),
    "Context.decode_token": lambda w: (w.context.decode_token, {"token": 1, "pos": 3}),
    "Context.logits": lambda w: (w.context.logits, {}),
    "Context.all_logits": lambda w: (w.context.all_logits, {}),
    "Context.logits_view": lambda w: (w.context.logits_view, {}),
    "Context.embeddings": lambda w: (w.context.embeddings, {}),
    "Context.all_embeddings": lambda w: (w.context.all_embeddings, {}),
    "Context.embeddings_seq": lambda w: (w.pooled.embeddings_seq, {}),
    "Context.attach_threadpool": lambda w: (w.context.attach_threadpool, {"threadpool": w.pool}),
    "Context.detach_threadpool": lambda w: (w.context.detach_threadpool, {}),
    "Context.cancel": lambda w: (w.context.cancel, {}),
    "Context.close": lambda w: (w.context.close, {}),
    "Context.reset_performance": lambda w: (w.context.reset_performance, {}),
    "Context.set_causal_attn": lambda w: (w.context.set_causal_attn, {"causal_attn": True}),
    "Context.set_embeddings": lambda w: (w.context.set_embeddings, {"embeddings": True}),
    "Context.set_n_threads": lambda w: (w.context.set_n_threads, {"n_threads": 1}),
    "Context.synchronize": lambda w: (w.context.synchronize, {}),
    "Context.warmup": lambda w: (w.keep(Context(w.model, n_ctx=64)).warmup, {}),
    # Memory and states
    "Memory.clear": lambda w: (w.context.memory.clear, {}),
    "Memory.seq_rm": lambda w: (w.context.memory.seq_rm, {"seq_id": 0}),
    "Memory.seq_cp": lambda w: (w.context.memory.seq_cp, {"source": 0, "destination": 1}),
    "Memory.seq_keep": lambda w: (w.context.memory.seq_keep, {"seq_id": 0}),
    "Memory.seq_add": lambda w: (
        w.context.memory.seq_add,
        {"seq_id": 0, "p0": 0, "p1": -1, "delta": 1},
    ),
    "Memory.seq_div": lambda w: (
        w.context.memory.seq_div,
        {"seq_id": 0, "p0": 0, "p1": -1, "divisor": 2},
    ),
    "Memory.seq_pos_min": lambda w: (w.context.memory.seq_pos_min, {"seq_id": 0}),
    "Memory.seq_pos_max": lambda w: (w.context.memory.seq_pos_max, {"seq_id": 0}),
    "State.get_size": lambda w: (w.context.state.get_size, {}),
    "State.get_data": lambda w: (w.context.state.get_data, {}),
    "State.get_data_into": lambda w: (
        w.context.state.get_data_into,
        {"buffer": bytearray(w.context.state.get_size())},
    ),
    "State.set_data": lambda w: (
        w.context.state.set_data,
        {"data": w.context.state.get_data()},
    ),
    "State.save_file": lambda w: (w.context.state.save_file, {"path": w.folder / "all"}),
    "State.load_file": lambda w: (w.context.state.load_file, {"path": w.state_path}),
    "State.seq_get_size": lambda w: (w.context.state.seq_get_size, {"seq_id": 0}),
    "State.seq_get_data": lambda w: (w.context.state.seq_get_data, {"seq_id": 0}),
    "State.seq_get_data_into": lambda w: (
        w.context.state.seq_get_data_into,
        {"buffer": bytearray(w.context.state.seq_get_size(0)), "seq_id": 0},
    ),
    "State.seq_set_data": lambda w: (
        w.context.state.seq_set_data,
        {"data": w.context.state.seq_get_data(0), "seq_id": 1},
    ),
    "State.seq_save_file": lambda w: (
        w.context.state.seq_save_file,
        {"path": w.folder / "one", "seq_id": 0},
    ),
    "State.seq_load_file": lambda w: (
        w.context.state.seq_load_file,
        {"path": w.seq_state_path, "seq_id": 1},
    ),
    "Threadpool": lambda w: (pyllama.Threadpool, {"n_threads": 1}),
    "Threadpool.close": lambda w: (w.pool.close, {}),
    # Batches
    "Batch": lambda w: (Batch, {"capacity": 4}),
    "Batch.add": lambda w: (Batch(4).add, {"token": 1, "pos": 0}),
    "Batch.add_tokens": lambda w: (Batch(4).add_tokens, {"tokens": PROMPT}),
    "Batch.add_embeddings": lambda w: (
        Batch(4, n_embd=32).add_embeddings,
        {"embeddings": _ZEROS},
    ),
    "Batch.from_tokens": lambda w: (Batch.from_tokens, {"tokens": PROMPT}),
    "Batch.clear": lambda w: (Batch(4).clear, {}),
    # Samplers
    "Sampler.greedy": lambda w: (Sampler.greedy, {}),
    "Sampler.dist": lambda w: (Sampler.dist, {"seed": 1}),
    "Sampler.temp": lambda w: (Sampler.temp, {"temperature": 1.0}),
    "Sampler.top_k": lambda w: (Sampler.top_k, {"k": 4}),
    "Sampler.top_p": lambda w: (Sampler.top_p, {"p": 0.5}),
    "Sampler.min_p": lambda w: (Sampler.min_p, {"p": 0.5}),
    "Sampler.penalties": lambda w: (Sampler.penalties, {"vocab": w.model.vocab}),
    "Sampler.typical": lambda w: (Sampler.typical, {"p": 0.5}),
    "Sampler.top_n_sigma": lambda w: (Sampler.top_n_sigma, {"n": 1.0}),
    "Sampler.temp_ext": lambda w: (Sampler.temp_ext, {"temperature": 1.0, "delta": 0.5}),
    "Sampler.xtc": lambda w: (Sampler.xtc, {"probability": 0.5, "threshold": 0.1, "seed": 1}),
    "Sampler.mirostat": lambda w: (Sampler.mirostat, {"vocab": w.model.vocab, "seed": 1}),
    "Sampler.mirostat_v2": lambda w: (Sampler.mirostat_v2, {"seed": 1}),
    "Sampler.adaptive_p": lambda w: (Sampler.adaptive_p, {"seed": 1, "target": 0.5}),
    "Sampler.dry": lambda w: (Sampler.dry, {"vocab": w.model.vocab, "multiplier": 0.8}),
    "Sampler.infill": lambda w: (Sampler.infill, {"vocab": w.model.vocab}),
    "Sampler.logit_bias": lambda w: (
        Sampler.logit_bias,
        {"vocab": w.model.vocab, "biases": {1: 0.5}},
    ),
    "Sampler.python": lambda w: (Sampler.python, {"sampler": lambda candidates: candidates}),
    "Sampler.accept": lambda w: (w.sampler.accept, {"token": 1}),
    "Sampler.apply": lambda w: (w.sampler.apply, {"candidates": w.candidates}),
    "Sampler.clone": lambda w: (w.sampler.clone, {}),
    "Sampler.reset": lambda w: (w.sampler.reset, {}),
    "Sampler.close": lambda w: (w.sampler.close, {}),
    "Candidates": lambda w: (pyllama.Candidates, {"logits": [1.0, 2.0]}),
    "Candidates.keep": lambda w: (w.candidates.keep, {"which": [0]}),
    "Candidates.select": lambda w: (w.candidates.select, {"index": 0}),
    "Candidates.with_logits": lambda w: (w.candidates.with_logits, {"logits": [1.0, 2.0, 3.0]}),
    "Grammar": lambda w: (pyllama.Grammar, {"gbnf": 'root ::= "a"'}),
    "Grammar.from_json_schema": lambda w: (
        pyllama.Grammar.from_json_schema,
        {"schema": {"type": "string"}},
    ),
    "GrammarSampler": lambda w: (
        pyllama.GrammarSampler,
        {"vocab": w.model.vocab, "grammar": 'root ::= "a"'},
    ),
    "ReasoningBudgetSampler": lambda w: (
        pyllama.ReasoningBudgetSampler,
        {"vocab": w.model.vocab, "start": [3], "ends": [[4]], "forced": [4], "budget": 2},
    ),
    "GrammarSampler.allows": lambda w: (w.grammar.allows, {"tokens": PROMPT}),
    "GrammarSampler.allowed_tokens": lambda w: (w.grammar.allowed_tokens, {}),
    "GrammarSampler.forced_text": lambda w: (w.grammar.forced_text, {}),
    "GrammarSampler.forced_tokens": lambda w: (
        w.grammar.forced_tokens,
        {"forcing": pyllama.Forcing()},
    ),
    "Forcing": lambda w: (pyllama.Forcing, {"fewest": 2, "most": 8, "never": (1,)}),
    "GrammarSampler.complete_within": lambda w: (w.grammar.complete_within, {"n_tokens": 9}),
    "GrammarSampler.fits": lambda w: (w.grammar.fits, {"tokens": PROMPT}),
    "GrammarSampler.repeated": lambda w: (w.grammar.repeated, {}),
    "GrammarSampler.shortened": lambda w: (w.grammar.shortened, {}),
    "SamplerChain": lambda w: (pyllama.SamplerChain, {"samplers": [Sampler.greedy()]}),
    "SamplerChain.sample": lambda w: (w.chain.sample, {"context": w.context}),
    "sample_each": lambda w: (
        pyllama.sample_each,
        {"context": w.context, "chains": {-1: w.chain}},
    ),
    "generate_each": lambda w: (
        pyllama.generate_each,
        {
            "context": w.context,
            "batch": pyllama.Batch.from_tokens([1], pos=w.context.memory.seq_pos_max(0) + 1),
            "runs": {0: pyllama.Run(w.chain, 0, w.context.memory.seq_pos_max(0) + 2, 2)},
            "max_steps": 2,
        },
    ),
    "Generation": lambda w: (
        lambda context, n_threads=None: w.keep(pyllama.Generation(context, n_threads=n_threads)),
        {"context": w.keep(Context(w.model, n_ctx=64, n_threads=1))},
    ),
    "Generation.add": lambda w: (
        w.generation.add,
        {"seq_id": 0, "tokens": PROMPT, "pos": 0, "run": pyllama.Run(w.chain, 0, 3, 2)},
    ),
    "Generation.wait": lambda w: (w.generation.wait, {}),
    "Generation.wake": lambda w: (w.generation.wake, {}),
    "Generation.remove": lambda w: (w.generation.remove, {"seq_id": 0}),
    "Generation.close": lambda w: (w.generation.close, {}),
    "SamplerChain.accept": lambda w: (w.chain.accept, {"token": 1}),
    "SamplerChain.reset": lambda w: (w.chain.reset, {}),
    "SamplerChain.add": lambda w: (
        w.keep(pyllama.SamplerChain([])).add,
        {"sampler": Sampler.greedy()},
    ),
    "SamplerChain.remove": lambda w: (w.chain.remove, {"index": 0}),
    "SamplerChain.apply": lambda w: (w.chain.apply, {"candidates": w.candidates}),
    "SamplerChain.clone": lambda w: (w.chain.clone, {}),
    "SamplerChain.copy_state": lambda w: (w.chain.copy_state, {"source": w.chain.clone()}),
    "SamplerChain.perf": lambda w: (w.chain.perf, {}),
    "SamplerChain.perf_reset": lambda w: (w.chain.perf_reset, {}),
    "SamplerChain.close": lambda w: (w.chain.close, {}),
    # Chats
    "ChatTemplate": lambda w: (pyllama.ChatTemplate, {"model": w.model}),
    "ChatTemplate.apply": lambda w: (w.template.apply, {"messages": MESSAGES}),
    "ChatParser.parse": lambda w: (w.template.apply(MESSAGES).parser.parse, {"text": "Hello"}),
    "ChatMessage.compute_diffs": lambda w: (
        pyllama.ChatMessage("Hello").compute_diffs,
        {"previous": pyllama.ChatMessage("He")},
    ),
    # Adapters
    "LoraAdapter": lambda w: (pyllama.LoraAdapter, {"model": w.model, "path": w.lora_path}),
    "LoraAdapter.close": lambda w: (w.adapter.close, {}),
    "set_adapters_lora": lambda w: (
        pyllama.set_adapters_lora,
        {"context": w.context, "adapters": {w.adapter: 1.0}},
    ),
    "load_control_vector": lambda w: (pyllama.load_control_vector, {"path": w.vector_path}),
    "set_control_vector": lambda w: (
        pyllama.set_control_vector,
        {"context": w.context, "directions": _ZEROS},
    ),
    # Files and their memory
    "quantize": lambda w: (
        pyllama.quantize,
        {"src": w.model_path, "dst": w.folder / "quantized", "ftype": "Q8_0"},
    ),
    "imatrix_program": lambda w: (pyllama.imatrix_program, {}),
    "load_imatrix": lambda w: (pyllama.load_imatrix, {"path": w.model_path}),
    "memory_use": lambda w: (pyllama.memory_use, {"path": w.model_path, "n_ctx": 64}),
    "memory_fit": lambda w: (pyllama.memory_fit, {"path": w.model_path, "n_ctx": 64}),
    # Devices
    "devices": lambda w: (pyllama.devices, {}),
    "backends": lambda w: (pyllama.backends, {}),
    "backend_features": lambda w: (pyllama.backend_features, {"device": pyllama.devices()[0]}),
    "backend_devices": lambda w: (pyllama.backend_devices, {"backend": "cpu"}),
    "build_info": lambda w: (pyllama.build_info, {}),
    "unloaded_backends": lambda w: (pyllama.unloaded_backends, {}),
    "backend_packages": lambda w: (pyllama.backend_packages, {}),
    "distribution_name": lambda w: (pyllama.distribution_name, {}),
    "extra_command": lambda w: (pyllama.extra_command, {"extra": "convert"}),
    "load_backends": lambda w: (pyllama.load_backends, {}),
    "load_backend": lambda w: (pyllama.load_backend, {"path": w.model_path}),
    "cpu_variant": lambda w: (pyllama.cpu_variant, {}),
    "cpu_math_cores": lambda w: (pyllama.cpu_math_cores, {}),
    "max_devices": lambda w: (pyllama.max_devices, {}),
    "max_parallel_sequences": lambda w: (pyllama.max_parallel_sequences, {}),
    "supports_gpu_offload": lambda w: (pyllama.supports_gpu_offload, {}),
    "supports_mlock": lambda w: (pyllama.supports_mlock, {}),
    "supports_mmap": lambda w: (pyllama.supports_mmap, {}),
    "supports_rpc": lambda w: (pyllama.supports_rpc, {}),
    "system_info": lambda w: (pyllama.system_info, {}),
    "llama_cpp_version": lambda w: (pyllama.llama_cpp_version, {}),
    "RpcServer": lambda w: (pyllama.RpcServer, {"port": 0}),
    "RpcServer.close": lambda w: (w.keep(pyllama.RpcServer(port=0)).close, {}),
    "rpc_devices": lambda w: (pyllama.rpc_devices, {"endpoint": "127.0.0.1:1"}),
}

#: Rows whose valid call is refused, and by what.
REFUSED: dict[str, type[Exception]] = {
    "Context.encode": pyllama.ContextError,
    "load_imatrix": pyllama.QuantizeError,
    "load_backend": pyllama.BackendError,
    "rpc_devices": pyllama.BackendError,
}
if not pyllama.supports_rpc():
    REFUSED |= {"RpcServer": pyllama.BackendError, "RpcServer.close": pyllama.BackendError}
