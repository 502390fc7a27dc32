"""Outputs: logits and embeddings, copied, viewed and pooled."""

from __future__ import annotations

import gc
import weakref

import gguf
import numpy as np
import pytest
from decoding import PROMPT

import pyllama
from pyllama import Batch, Context

POOLED = {"mean": lambda rows: rows.mean(axis=0), "cls": lambda r: r[0], "last": lambda r: r[-1]}


@pytest.fixture
def decoded(context):
    context.decode(Batch.from_tokens(PROMPT, outputs="all"))
    return context


@pytest.fixture(scope="module")
def bert_path(write_tiny_model):
    return write_tiny_model(architecture="bert")


@pytest.fixture(scope="module")
def bert(bert_path):
    with pyllama.Model(bert_path) as model:
        yield model


@pytest.fixture(scope="module")
def t5(write_tiny_model):
    with pyllama.Model(write_tiny_model(architecture="t5")) as model:
        yield model


def embedding_context(model, **options):
    return Context(model, n_ctx=512, n_threads=1, embeddings=True, **options)


def pooled(model, tokens, pooling_type, **options):
    with embedding_context(model, pooling_type=pooling_type, **options) as context:
        context.decode(Batch.from_tokens(tokens))
        return context.embeddings_seq()


# Logits


def test_all_logits_are_the_rows_of_the_outputs(tiny, context):
    batch = Batch(len(PROMPT))
    batch.add_tokens(PROMPT, outputs=np.array([False, True, False, True, True]))
    context.decode(batch)
    assert context.n_outputs == 3
    rows = context.all_logits()
    assert rows.shape == (3, tiny.vocab.n_tokens)
    assert rows.dtype == np.float32
    for row, index in zip(rows, (1, 3, 4), strict=True):
        np.testing.assert_array_equal(row, context.logits(index))


def test_outputs_of_several_sequences_keep_the_order_of_the_batch(tiny):
    with Context(tiny, n_ctx=512, n_seq_max=2, n_threads=1) as context:
        batch = Batch(6)
        for pos in range(3):
            batch.add(PROMPT[pos], pos, (1,), output=True)
            batch.add(PROMPT[-pos], pos, (0,), output=True)
        context.decode(batch)
        rows = context.all_logits()
        for index in range(6):
            np.testing.assert_array_equal(rows[index], context.logits(index))


def test_logits_into_an_array_of_the_caller(tiny, decoded):
    one = np.full(tiny.vocab.n_tokens, np.nan, dtype=np.float32)
    assert decoded.logits(2, out=one) is one
    np.testing.assert_array_equal(one, decoded.logits(2))
    every = np.empty((tiny.vocab.n_tokens, len(PROMPT)), dtype=np.float32).T
    assert decoded.all_logits(out=every) is every
    np.testing.assert_array_equal(every, decoded.all_logits())


@pytest.mark.parametrize(
    "out",
    [
        np.empty(5, dtype=np.float32),
        np.empty((1, 271), dtype=np.float32),
        np.empty(271, dtype=np.float64),
        [0.0] * 271,
        "out",
    ],
)
def test_an_array_that_does_not_fit(decoded, out):
    with pytest.raises(ValueError, match="out must be a float32 array of shape"):
        decoded.logits(out=out)


def test_an_array_that_must_not_be_written(decoded):
    out = np.zeros_like(decoded.logits())
    out.flags.writeable = False
    with pytest.raises(ValueError, match="writeable"):
        decoded.logits(out=out)


def test_a_failed_decode_leaves_no_outputs(decoded):
    with pytest.raises(pyllama.InvalidBatchError):
        decoded.decode(Batch.from_tokens([1], pos=99))
    assert decoded.n_outputs == 0
    for read in (decoded.logits, decoded.all_logits, decoded.logits_view):
        with pytest.raises(IndexError, match="no logits"):
            read()


def test_a_batch_without_outputs_gives_none(context):
    context.decode(Batch.from_tokens(PROMPT, outputs="none"))
    assert context.n_outputs == 0
    with pytest.raises(IndexError, match="no logits"):
        context.all_logits()


# Views


def test_a_view_is_what_a_copy_is(decoded):
    view = decoded.logits_view()
    np.testing.assert_array_equal(view, decoded.all_logits())
    assert not view.flags.writeable
    assert not view.flags.owndata
    assert np.shares_memory(view, decoded.logits_view())
    with pytest.raises(ValueError, match="read-only"):
        view[0, 0] = 0


@pytest.mark.parametrize("part", ["all", "row", "slice of a slice", "reshaped"])
def test_no_decode_while_a_view_is_alive(decoded, part):
    view = decoded.logits_view()
    kept = {
        "all": view,
        "row": view[1],
        "slice of a slice": view[1:][::2, 3:],
        "reshaped": view.reshape(-1),
    }[part]
    del view
    values = np.array(kept)
    for use in (
        lambda: decoded.decode(Batch.from_tokens([1], pos=len(PROMPT))),
        lambda: decoded.decode_token(1, len(PROMPT)),
    ):
        with pytest.raises(pyllama.OutputsInUseError, match="del"):
            use()
    decoded.memory.clear()
    gc.collect()
    np.testing.assert_array_equal(kept, values)
    del kept
    decoded.decode(Batch.from_tokens(PROMPT))


def test_a_view_outlives_its_context(tiny_model_path):
    model = pyllama.Model(tiny_model_path)
    context = Context(model, n_ctx=256, n_threads=1)
    context.decode(Batch.from_tokens(PROMPT))
    expected, view = context.logits(), context.logits_view()
    freed = context._handle._finalizer
    context.close()
    assert context.closed
    assert freed.alive
    model.close()
    del context, model
    gc.collect()
    np.testing.assert_array_equal(view[0], expected)
    del view
    gc.collect()
    assert not freed.alive


def test_a_view_keeps_no_context_object_alive(tiny):
    context = Context(tiny, n_ctx=256, n_threads=1)
    context.decode(Batch.from_tokens(PROMPT))
    view, seen = context.logits_view(), weakref.ref(context)
    del context
    gc.collect()
    assert seen() is None
    assert np.isfinite(view).all()


# Embeddings


def test_embeddings_of_tokens(tiny):
    with embedding_context(tiny) as context:
        assert context.computes_embeddings
        assert context.pooling_type == "none"
        context.decode(Batch.from_tokens(PROMPT, outputs="none"))
        assert context.n_outputs == len(PROMPT)
        rows = context.all_embeddings()
        assert rows.shape == (len(PROMPT), context.n_embd_out) == (len(PROMPT), tiny.n_embd)
        for index in range(len(PROMPT)):
            np.testing.assert_array_equal(context.embeddings(index), rows[index])
        np.testing.assert_array_equal(context.embeddings(), rows[-1])
        out = np.empty(tiny.n_embd, dtype=np.float32)
        assert context.embeddings(0, out=out) is out
        with pytest.raises(IndexError):
            context.embeddings(len(PROMPT))


def test_logits_are_the_output_matrix_times_the_embedding(tiny, tiny_model_path):
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tiny_model_path).tensors}
    output = tensors["output.weight"].data
    with embedding_context(tiny) as context:
        context.decode(Batch.from_tokens(PROMPT))
        expected = context.all_embeddings() @ output.T
        np.testing.assert_allclose(context.all_logits(), expected, rtol=1e-3, atol=1e-3)


def test_embeddings_are_switched_on_and_off(context):
    context.decode(Batch.from_tokens(PROMPT))
    with pytest.raises(IndexError, match="embeddings=True"):
        context.embeddings()
    context.set_embeddings(True)
    with pytest.raises(IndexError, match="embeddings=True"):
        context.embeddings()
    context.memory.clear()
    context.decode(Batch.from_tokens(PROMPT))
    assert context.n_outputs == len(PROMPT)
    assert context.embeddings().std() > 0.1
    context.set_embeddings(False)
    context.memory.clear()
    context.decode(Batch.from_tokens(PROMPT))
    assert context.n_outputs == 1
    with pytest.raises(IndexError, match="embeddings=True"):
        context.embeddings()


@pytest.mark.parametrize("pooling_type", POOLED)
@pytest.mark.parametrize("kind", ["tiny", "bert"])
def test_pooling_is_that_of_the_tokens_embeddings(request, kind, pooling_type):
    model = request.getfixturevalue(kind)
    with embedding_context(model, pooling_type="none") as context:
        context.decode(Batch.from_tokens(PROMPT))
        rows = context.all_embeddings()
    found = pooled(model, PROMPT, pooling_type)
    np.testing.assert_allclose(found, POOLED[pooling_type](rows), rtol=1e-5, atol=1e-5)


def test_the_model_says_how_it_pools(bert):
    with embedding_context(bert) as context:
        assert context.pooling_type == "mean"
        context.decode(Batch.from_tokens(PROMPT))
        np.testing.assert_array_equal(context.embeddings_seq(0), pooled(bert, PROMPT, "mean"))
        for read in (context.embeddings, context.all_embeddings):
            with pytest.raises(ValueError, match="embeddings_seq"):
                read()
        with pytest.raises(IndexError, match="logits"):
            context.logits()
        with pytest.raises(IndexError, match="seq_id 1"):
            context.embeddings_seq(1)


def test_only_contexts_that_pool_have_embeddings_of_sequences(tiny):
    with embedding_context(tiny) as context:
        context.decode(Batch.from_tokens(PROMPT))
        with pytest.raises(ValueError, match="embeddings"):
            context.embeddings_seq()


def test_reranking_scores_are_the_classifier_of_the_first_token(bert, bert_path):
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(bert_path).tensors}
    hidden = np.tanh(tensors["cls.weight"] @ pooled(bert, PROMPT, "cls") + tensors["cls.bias"])
    expected = tensors["cls.output.weight"] @ hidden + tensors["cls.output.bias"]
    with embedding_context(bert, pooling_type="rank") as context:
        assert context.n_cls_out == 2
        context.decode(Batch.from_tokens(PROMPT))
        scores = context.embeddings_seq()
    assert scores.shape == (2,)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pooling_type", POOLED)
@pytest.mark.parametrize("kind", ["tiny", "bert", "tiny_mamba"])
def test_sequences_of_one_batch_are_pooled_each_by_itself(request, kind, pooling_type):
    model = request.getfixturevalue(kind)
    runs = [PROMPT, [7, 8, 9], [50] * 9]
    with embedding_context(
        model, pooling_type=pooling_type, n_seq_max=3, n_ubatch=300, kv_unified=kind == "tiny"
    ) as context:
        batch = Batch(32)
        for seq_id, run in enumerate(runs):
            batch.add_tokens(run, seq_id=seq_id)
        context.decode(batch)
        for seq_id, run in enumerate(runs):
            alone = pooled(model, run, pooling_type)
            np.testing.assert_allclose(context.embeddings_seq(seq_id), alone, atol=1e-4)


def test_what_would_be_pooled_in_parts_is_refused(tiny):
    with embedding_context(tiny, pooling_type="mean", n_seq_max=2, n_ubatch=8) as context:
        batch = Batch(16)
        batch.add_tokens(PROMPT)
        batch.add_tokens([7, 8], seq_id=1)
        with pytest.raises(pyllama.InvalidBatchError, match="different lengths"):
            context.decode(batch)
        with pytest.raises(pyllama.InvalidBatchError, match="n_ubatch is 8"):
            context.decode(Batch.from_tokens([1] * 9))
        even = Batch(8)
        even.add_tokens([1, 2, 3, 4])
        even.add_tokens([5, 6, 7, 8], seq_id=1)
        context.decode(even)
        found = context.embeddings_seq(1)
    np.testing.assert_allclose(found, pooled(tiny, [5, 6, 7, 8], "mean"), atol=1e-5)


def test_means_of_sequences_need_a_multiple_of_their_number(tiny, bert):
    with pytest.raises(ValueError, match="n_ubatch must be a multiple"):
        embedding_context(tiny, pooling_type="mean", n_seq_max=3)
    with pytest.raises(ValueError, match="n_ubatch must be a multiple"):
        embedding_context(bert, n_seq_max=3)
    embedding_context(tiny, pooling_type="last", n_seq_max=3).close()


def test_a_position_beyond_the_models_table(bert):
    """With several threads llama.cpp would end the process."""
    with embedding_context(bert, n_batch=1024, n_ubatch=1024) as context:
        context.decode(Batch.from_tokens([1] * bert.n_ctx_train))
        with pytest.raises(pyllama.InvalidBatchError, match="position 512"):
            context.decode(Batch.from_tokens([1] * (bert.n_ctx_train + 1)))


def test_bert_needs_the_whole_batch_at_once(bert):
    with embedding_context(bert, n_ubatch=8) as context:
        with pytest.raises(pyllama.InvalidBatchError, match="n_ubatch is 8"):
            context.decode(Batch.from_tokens([1] * 9))
        context.decode(Batch.from_tokens([1] * 8))


# Encoder and decoder


def test_a_decoder_attends_to_what_was_encoded(t5):
    with Context(t5, n_ctx=256, n_threads=1) as context:
        rows = []
        for source in ([5, 6, 7], [8, 9, 10, 11], [5, 6, 7]):
            context.memory.clear()
            context.encode(Batch.from_tokens(source))
            assert context.all_embeddings().shape == (len(source), t5.n_embd)
            with pytest.raises(IndexError, match="logits"):
                context.logits()
            context.decode(Batch.from_tokens([1]))
            rows.append(context.logits())
        assert not np.allclose(rows[0], rows[1])
        np.testing.assert_array_equal(rows[0], rows[2])


def test_nothing_is_decoded_before_it_was_encoded(t5):
    with Context(t5, n_ctx=256) as context:
        with pytest.raises(pyllama.ContextError, match="encode"):
            context.decode(Batch.from_tokens([1]))
        with pytest.raises(pyllama.InvalidBatchError):
            context.encode(Batch.from_tokens([10**6]))
        with pytest.raises(pyllama.ContextError, match="encode"):
            context.decode(Batch.from_tokens([1]))
        context.encode(Batch.from_tokens([1]))
        context.decode(Batch.from_tokens([1]))


def test_an_encoder_needs_the_whole_batch_at_once(t5):
    with Context(t5, n_ctx=256, n_ubatch=4) as context:
        with pytest.raises(pyllama.InvalidBatchError, match="n_ubatch is 4"):
            context.encode(Batch.from_tokens([1] * 5))
        context.encode(Batch.from_tokens([1] * 4))


def test_sequences_of_an_encoder_decoder_share_a_memory(t5):
    with pytest.raises(ValueError, match="kv_unified"):
        Context(t5, n_seq_max=2)
    with Context(t5, n_ctx=256, n_seq_max=2, kv_unified=True) as context:
        batch = Batch(4)
        batch.add_tokens([5, 6])
        batch.add_tokens([7, 8], seq_id=1)
        context.encode(batch)
        context.decode(Batch.from_tokens([1, 1], pos=[0, 0], seq_id=[0, 1], outputs="all"))
        assert not np.allclose(context.logits(0), context.logits(1))


@pytest.mark.model
def test_a_real_model_embeds_what_is_alike_alike(smollm2):
    def embed(text):
        with Context(
            smollm2, n_ctx=256, embeddings=True, pooling_type="mean", n_ubatch=256
        ) as context:
            context.decode(Batch.from_tokens(smollm2.vocab.tokenize(text)))
            row = context.embeddings_seq()
            return row / np.linalg.norm(row)

    cat, kitten, tax = map(embed, ("The cat sleeps.", "A kitten naps.", "Taxes rose by 3% in May."))
    assert cat @ kitten > cat @ tax
