"""The parameters of a context: what each changes, and what is refused before it can do harm."""

from __future__ import annotations

import threading
from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest
from decoding import PROMPT, logits_of

import pyllama
from pyllama import Batch, Context, ContextParams

NAN, INF = float("nan"), float("inf")
LONG = [*range(5, 105)]


@pytest.fixture(scope="module")
def wide(write_tiny_model):
    """Heads of 64 values, which fit into the blocks of every cache type."""
    with pyllama.Model(write_tiny_model(n_embd=256, n_head=4)) as model:
        yield model


@pytest.fixture(scope="module")
def gemma2(write_tiny_model):
    with pyllama.Model(write_tiny_model(architecture="gemma2")) as model:
        yield model


def logits_with(model, tokens, **options):
    with Context(model, **{"n_ctx": 256, "n_threads": 1} | options) as context:
        return logits_of(context, tokens)


@pytest.mark.parametrize(
    "options",
    [
        {"rope_freq_base": 500.0},
        {"rope_freq_scale": 0.25},
        {"rope_scaling_type": "yarn", "rope_freq_scale": 0.25},
        {"rope_scaling_type": "yarn", "rope_freq_scale": 0.25, "yarn_ext_factor": 0.5},
        {"rope_scaling_type": "yarn", "rope_freq_scale": 0.25, "yarn_orig_ctx": 64},
        {
            "rope_scaling_type": "yarn",
            "rope_freq_scale": 0.25,
            "yarn_beta_fast": 4.0,
            "yarn_beta_slow": 3.0,
        },
        {"attention_type": "non_causal"},
    ],
)
def test_what_changes_the_result(tiny, options):
    plain = logits_with(tiny, LONG)
    changed = logits_with(tiny, LONG, **options)
    # Beyond what one YaRN parameter does on top of the others.
    common = ("rope_scaling_type", "rope_freq_scale")
    base = {key: options[key] for key in common if key in options}
    if base != options:
        plain = logits_with(tiny, LONG, **base)
    assert np.isfinite(changed).all()
    assert not np.allclose(changed, plain, atol=1e-3)


def test_a_factor_counts_only_where_positions_are_scaled(tiny, expected):
    for options in (
        {"rope_freq_scale": 1.0},
        {"rope_freq_scale": 0.5, "rope_scaling_type": "none"},
    ):
        np.testing.assert_array_equal(logits_with(tiny, PROMPT, **options), expected)


@pytest.mark.parametrize("scale", [0.25, 1e6])
def test_yarn_does_not_change_what_the_model_says_of_its_training(
    write_tiny_model, tmp_path, caplog, scale
):
    with pyllama.Model(write_tiny_model(seed=3), use_extra_bufts=False) as model:
        trained = model.n_ctx_train
        yarn = ContextParams(rope_scaling_type="yarn", rope_freq_scale=scale)
        makers = [
            threading.Thread(target=lambda: Context(model, yarn, n_ctx=256).close())
            for _ in range(4)
        ]
        for maker in makers:
            maker.start()
        for maker in makers:
            maker.join()
        caplog.clear()
        with Context(model) as context:
            assert context.n_ctx == trained
        assert "possible training context overflow" not in caplog.text
        model.save(tmp_path / "saved.gguf")
    with pyllama.Model(tmp_path / "saved.gguf") as saved:
        assert saved.n_ctx_train == trained


@pytest.mark.parametrize(
    "options", [{"op_offload": False}, {"offload_kqv": False}, {"n_rs_seq": 4}]
)
def test_what_must_not_change_the_result(tiny, expected, options):
    np.testing.assert_array_equal(logits_with(tiny, PROMPT, **options), expected)


CACHE_TYPES = ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]


@pytest.mark.parametrize("kind", CACHE_TYPES)
def test_every_cache_type_computes_nearly_the_same(wide, kind):
    exact = logits_with(wide, LONG, type_k="f32", type_v="f32")
    found = logits_with(wide, LONG, type_k=kind, type_v=kind)
    assert np.corrcoef(found, exact)[0, 1] > (0.999 if kind in ("f32", "f16", "bf16") else 0.9)


@pytest.mark.parametrize("kind", ["q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"])
@pytest.mark.parametrize("flash", ["auto", "disabled", "enabled"])
def test_keys_that_share_a_block_with_another_heads_are_refused(tiny, kind, flash):
    """Its heads have 16 values, and blocks 32: without flash attention that computed garbage."""
    with pytest.raises((ValueError, pyllama.ContextError), match=r"type_k|K cache type"):
        Context(tiny, n_ctx=256, type_k=kind, flash_attn=flash)


def test_smaller_cache_types_make_smaller_states(wide):
    sizes = []
    for kind in ("f32", "f16", "q8_0", "q4_0"):
        with Context(wide, n_ctx=256, type_k=kind, type_v=kind) as context:
            context.decode(Batch.from_tokens(LONG))
            sizes.append(context.state.seq_get_size(0))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 1.9 * sizes[1] > 3.4 * sizes[2]


def test_a_full_window_remembers_what_a_small_one_forgets(gemma2):
    for swa_full, first in ((True, 0), (False, 1)):
        with Context(gemma2, n_ctx=512, n_ubatch=16, swa_full=swa_full, n_threads=1) as context:
            context.decode(Batch.from_tokens([7] * 400))
            assert (context.memory.seq_pos_min(0) > 0) == bool(first)
            last = context.logits()
        if swa_full:
            expected = last
    np.testing.assert_allclose(last, expected, atol=0.02)


def test_attention_can_be_switched(context, expected):
    assert context.causal_attn
    context.set_causal_attn(False)
    assert not context.causal_attn
    context.decode(Batch.from_tokens(PROMPT, outputs="all"))
    first = context.logits(0)
    context.memory.clear()
    context.decode(Batch.from_tokens([*PROMPT[:-1], 99], outputs="all"))
    assert not np.allclose(context.logits(0), first)
    context.set_causal_attn(True)
    np.testing.assert_array_equal(logits_of(context, PROMPT), expected)


def test_without_causal_attention_a_batch_is_computed_at_once(tiny):
    with Context(tiny, n_ctx=256, n_ubatch=8, attention_type="non_causal") as context:
        assert not context.causal_attn
        context.decode(Batch.from_tokens([1] * 8))
        with pytest.raises(pyllama.InvalidBatchError, match="n_ubatch is 8"):
            context.decode(Batch.from_tokens([1] * 9, pos=8))
        context.set_causal_attn(True)
        context.decode(Batch.from_tokens([1] * 9, pos=8))


def test_no_more_outputs_than_there_is_room_for(tiny):
    with Context(tiny, n_ctx=256, n_outputs_max=2, n_threads=1) as context:
        assert context.n_outputs_max == 2
        with pytest.raises(pyllama.InvalidBatchError, match=r"3 outputs.*n_outputs_max"):
            context.decode(Batch.from_tokens([1, 2, 3], outputs="all"))
        context.decode(Batch.from_tokens([1, 2, 3], outputs=[False, True, True]))
        assert context.all_logits().shape[0] == 2
        context.set_embeddings(True)
        with pytest.raises(pyllama.InvalidBatchError, match="n_outputs_max"):
            context.decode(Batch.from_tokens([1, 2, 3], pos=3, outputs="none"))


def test_sequences_need_room_for_one_output_each(tiny):
    with pytest.raises(ValueError, match="n_batch"):
        Context(tiny, n_ctx=256, n_batch=2, n_seq_max=3)
    with pytest.raises(ValueError, match="n_outputs_max"):
        Context(tiny, n_ctx=256, n_outputs_max=2, n_seq_max=3)
    Context(tiny, n_ctx=256, n_batch=3, n_outputs_max=3, n_seq_max=3).close()


# What no machine has


@pytest.mark.parametrize("architecture", ["llama", "mamba", "jamba", "gemma2", "qwen2vl"])
def test_a_context_larger_than_the_machine_is_refused_with_numbers(write_tiny_model, architecture):
    with pyllama.Model(write_tiny_model(architecture=architecture)) as model:
        with pytest.raises(pyllama.ContextError, match=r"n_ctx=4294967040.*needs at least.*GB"):
            Context(model, n_ctx=2**32 - 256, n_batch=2**31 - 1, n_ubatch=2**31 - 1)
        with Context(model, n_ctx=2**17, n_ubatch=64) as context:
            assert context.n_ctx == 2**17
            context.decode(Batch.from_tokens([1]))


def test_a_recurrent_model_takes_any_n_ctx(tiny_mamba):
    """Its memory does not grow with it."""
    with Context(tiny_mamba, n_ctx=2**31) as context:
        context.decode(Batch.from_tokens(PROMPT))


def test_the_estimate_is_below_what_llama_cpp_takes(tiny):
    from pyllama._context_memory import available_bytes, least_bytes
    from pyllama._native._binding import lib

    params = lib.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = 2**16, 512, 512
    # Keys and values of two layers with two heads of 16 values each, in half precision.
    cache = 2**16 * 2 * 2 * 2 * 16 * 2
    assert cache < least_bytes(tiny, params) < 8 * cache
    assert available_bytes() > 2**28


def test_outputs_that_no_memory_could_hold(monkeypatch, context, expected):
    """As for a large vocabulary: the buffer of outputs grows with what a batch asks for."""
    monkeypatch.setattr("pyllama._decoding.fits", lambda size: size < 4 * 4000)
    with pytest.raises(pyllama.NativeMemoryError, match="100 outputs need"):
        context.decode(Batch.from_tokens(LONG, outputs="all"))
    np.testing.assert_array_equal(logits_of(context, PROMPT), expected)
    monkeypatch.undo()
    context.memory.clear()
    context.decode(Batch.from_tokens(LONG, outputs="all"))
    assert context.n_outputs == 100


# Arguments


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("n_rs_seq", -1, ValueError),
        ("n_rs_seq", 1000, ValueError),
        ("n_rs_seq", None, TypeError),
        ("n_outputs_max", -1, ValueError),
        ("n_outputs_max", 1.0, TypeError),
        ("rope_scaling_type", "dynamic", ValueError),
        ("rope_scaling_type", None, ValueError),
        ("pooling_type", "max", ValueError),
        ("pooling_type", 1, ValueError),
        ("attention_type", "sliding", ValueError),
        ("rope_freq_base", -1.0, ValueError),
        ("rope_freq_base", NAN, ValueError),
        ("rope_freq_base", "10000", TypeError),
        ("rope_freq_scale", INF, ValueError),
        ("rope_freq_scale", True, TypeError),
        ("yarn_ext_factor", -1.0, ValueError),
        ("yarn_ext_factor", NAN, ValueError),
        ("yarn_attn_factor", "1", TypeError),
        ("yarn_beta_fast", -0.5, ValueError),
        ("yarn_beta_slow", INF, ValueError),
        ("yarn_orig_ctx", -1, ValueError),
        ("yarn_orig_ctx", 2**31, ValueError),
    ],
)
def test_arguments_are_checked(tiny, argument, value, error):
    with pytest.raises(error, match=argument):
        Context(tiny, **{argument: value})


@pytest.mark.parametrize(("argument", "value"), [("n_ubatch", 0), ("type_k", "q3"), ("n_ctx", -1)])
def test_params_are_checked_when_they_are_made(argument, value):
    with pytest.raises(ValueError, match=argument):
        ContextParams(**{argument: value})
    with pytest.raises(ValueError, match=argument):
        replace(ContextParams(), **{argument: value})


def test_params_are_values():
    params = ContextParams(n_ctx=np.int64(256), type_k="q8_0", yarn_ext_factor=np.float32(0.5))
    assert params == ContextParams(n_ctx=256, type_k="q8_0", yarn_ext_factor=0.5)
    assert hash(params) == hash(replace(params))
    assert (type(params.n_ctx), type(params.yarn_ext_factor)) == (int, float)
    with pytest.raises(FrozenInstanceError):
        params.n_ctx = 512


def test_a_context_takes_params_or_keywords_or_both(tiny):
    params = ContextParams(n_ctx=512, n_batch=64, n_threads=1, kv_unified=True)
    with Context(tiny, params) as context:
        assert (context.n_ctx, context.n_batch, context.n_threads) == (512, 64, 1)
        assert context.n_threads_batch == 1
        assert context.kv_unified
    with Context(tiny, params, n_batch=32, n_seq_max=2) as context:
        assert (context.n_ctx, context.n_batch, context.n_seq_max) == (512, 32, 2)
    with pytest.raises(TypeError, match="ContextParams"):
        Context(tiny, {"n_ctx": 512})
    with pytest.raises(TypeError, match="n_cntx"):
        Context(tiny, n_cntx=512)


def test_every_field_of_the_struct_is_a_param():
    """Those of llama_context_params are read from its declaration."""
    from pyllama._native._binding import ffi
    from pyllama.context_params import ContextOptions

    in_c = {name for name, _ in ffi.typeof("struct llama_context_params").fields}
    elsewhere = {"abort_callback", "abort_callback_data", "samplers", "n_samplers"}
    elsewhere |= {"n_outputs_max_per_seq"}  # follows from the samplers
    assert in_c - elsewhere == vars(ContextParams())["_in_struct"].keys()
    own = {each.name: each.type for each in fields(ContextParams)}
    keywords = {key: it.__forward_arg__ for key, it in ContextOptions.__annotations__.items()}
    assert keywords == own


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e6])
@pytest.mark.parametrize("rope", ["none", "linear", "yarn", "longrope"])
def test_odd_scales_leave_the_process_alive(tiny_model_path, scale, rope):
    options = {"rope_scaling_type": rope, "rope_freq_scale": scale}
    with pyllama.Model(tiny_model_path) as model:  # of its own: see above
        assert logits_with(model, PROMPT, **options).shape == (model.vocab.n_tokens,)


# Running


@pytest.mark.parametrize("architecture", ["llama", "mamba", "bert", "t5", "gemma2"])
def test_warming_up_leaves_nothing_behind(write_tiny_model, architecture):
    with (
        pyllama.Model(write_tiny_model(architecture=architecture)) as model,
        Context(model, n_ctx=256, n_threads=1, embeddings=architecture == "bert") as context,
    ):
        context.warmup()
        assert context.n_outputs == 0
        assert context.memory.seq_pos_max(0) == -1
        if architecture == "t5":
            context.encode(Batch.from_tokens(PROMPT))
        context.decode(Batch.from_tokens(PROMPT))
        if architecture not in ("bert", "t5"):
            with pytest.raises(ValueError, match="empty memory"):
                context.warmup()


def test_warming_up_changes_no_result(context, expected):
    context.warmup()
    np.testing.assert_array_equal(logits_of(context, PROMPT), expected)


def test_performance_counts_and_measures(tiny):
    with Context(tiny, n_ctx=256, n_threads=1, no_perf=False) as context:
        context.decode(Batch.from_tokens(PROMPT))
        context.synchronize()
        for pos in (5, 6):
            context.decode_token(1, pos)
            context.logits()
        performance = context.performance
        assert (performance.n_p_eval, performance.n_eval) == (len(PROMPT), 2)
        assert performance.t_p_eval_ms > 0
        assert performance.t_eval_ms > 0
        assert performance.t_load_ms > 0
        context.reset_performance()
        again = context.performance
        assert (again.n_p_eval, again.n_eval, again.t_eval_ms) == (1, 1, 0)
        assert again.t_start_ms > performance.t_start_ms


def test_without_perf_nothing_is_measured(context):
    context.decode(Batch.from_tokens(PROMPT))
    assert context.performance.t_p_eval_ms == 0
    assert context.performance.n_p_eval == len(PROMPT)


def test_waiting_for_devices_that_are_done(context):
    context.synchronize()
    context.decode(Batch.from_tokens(PROMPT))
    context.synchronize()


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (513, ValueError), ("2", TypeError)])
def test_numbers_of_threads_are_checked(context, value, error):
    with pytest.raises(error, match="n_threads"):
        context.set_n_threads(value)
    with pytest.raises(error, match="n_threads_batch"):
        context.set_n_threads(1, value)


def test_what_replaces_the_metadata_counts(tiny_model_path):
    with pyllama.Model(tiny_model_path, kv_overrides={"llama.pooling_type": 1}) as model:
        with pytest.raises(ValueError, match="n_ubatch must be a multiple of n_seq_max"):
            Context(model, n_ctx=768, n_batch=256, n_ubatch=256, n_seq_max=3, embeddings=True)
        with Context(model, n_ctx=64) as context:
            assert context.pooling_type == "mean"


@pytest.mark.parametrize("value", ["mean", True, 1.0])
def test_what_is_no_number_replaces_none(tiny_model_path, value):
    with (
        pyllama.Model(tiny_model_path, kv_overrides={"llama.pooling_type": value}) as model,
        Context(model, n_ctx=64) as context,
    ):
        assert context.pooling_type == "none"


def test_a_closed_context_refuses_everything(tiny):
    context = Context(tiny, n_ctx=256)
    context.close()
    with pyllama.Threadpool(1) as pool:
        uses = [
            context.warmup,
            context.synchronize,
            lambda: context.set_embeddings(True),
            lambda: context.set_causal_attn(False),
            lambda: context.causal_attn,
            lambda: context.n_threads,
            lambda: context.n_threads_batch,
            lambda: context.set_n_threads(1),
            lambda: context.attach_threadpool(pool),
            context.detach_threadpool,
            lambda: context.performance,
            context.reset_performance,
            context.all_logits,
            context.logits_view,
            context.embeddings,
            context.all_embeddings,
            context.embeddings_seq,
        ]
        for use in uses:
            with pytest.raises(pyllama.ClosedError, match="closed"):
                use()
