from __future__ import annotations

import asyncio
import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from shutil import copyfile

import dspy
import numpy as np
import pytest

import pyllama
from adapter import LlamaCppEmbedder, ModelPool
from adapter.errors import (
    ConfigurationError,
    ContextTooLongError,
    InvalidParameterError,
    ModelNotLoadedError,
    PromptError,
    TextTooLongError,
)
from adapter.generation.busy import BUSY

TEXTS = ["hello", "hello world", "What is a vector?", "x", "hello world, said the world " * 3]

# Different batches round differently: keys and values are kept in half precision.
CLOSE = {"rtol": 0, "atol": 2e-3}

RERANK_TEMPLATE = "Q: {query} D: {document}<|im_end|>"


@pytest.fixture(scope="module")
def pool(write_tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    models = {
        "bert": {"architecture": "bert"},
        "llama": {},
        "mamba": {"architecture": "mamba"},
        "t5": {"architecture": "t5"},
        "template": {
            "architecture": "bert",
            "chat_template": [{"name": "rerank", "template": RERANK_TEMPLATE}],
        },
        "decoder": {
            "architecture": "qwen3",
            "chat_template": [{"name": "rerank", "template": RERANK_TEMPLATE}],
        },
    }
    for name, options in models.items():
        copyfile(write_tiny_model(**options), folder / f"{name}.gguf")
    with ModelPool(folder, context_length=128) as pool:
        yield pool


@pytest.fixture(scope="module")
def bert(pool):
    return LlamaCppEmbedder(pool.load_model("bert"))


def alone(embedder, text, **options):
    """What a context of its own computes for one text."""
    with embedder.loaded.lease() as model:
        tokens = model.vocab.tokenize(text)
        with pyllama.Context(
            model, n_ctx=256, n_batch=256, n_ubatch=256, n_threads=1, embeddings=True, **options
        ) as context:
            (context.encode if model.has_encoder else context.decode)(
                pyllama.Batch.from_tokens(tokens)
            )
            return context.embeddings_seq(0)


@pytest.mark.parametrize(
    ("name", "pooling"),
    [
        ("bert", None),
        ("bert", "cls"),
        ("bert", "last"),
        ("llama", "last"),
        ("llama", "mean"),
        ("mamba", "last"),
        ("t5", "mean"),
    ],
)
def test_many_texts_at_once_give_what_each_gives_alone(pool, name, pooling):
    embedder = LlamaCppEmbedder(pool.load_model(name), pooling=pooling, normalize=False)
    vectors = embedder(TEXTS)
    expected = np.stack(
        [alone(embedder, text, pooling_type=pooling or "unspecified") for text in TEXTS]
    )
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TEXTS), embedder.n_embd) == (5, 64)
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=5e-3 * np.abs(expected).max())
    # The texts are told apart.
    assert np.abs(vectors[0] - vectors[2]).max() > 0.1 * np.abs(expected).max()


def test_vectors_have_length_one(pool, bert):
    raw = LlamaCppEmbedder(pool.load_model("bert"), normalize=False)(TEXTS)
    expected = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    np.testing.assert_allclose(bert(TEXTS), expected, rtol=1e-5, atol=1e-6)


def test_a_vector_does_not_depend_on_the_order_or_the_number_of_texts(bert):
    many = [f"{text} {index}" for index in range(40) for text in TEXTS]
    vectors = bert(many)
    np.testing.assert_allclose(bert(many[::-1])[::-1], vectors, **CLOSE)
    for index in (0, 63, 64, 199):
        np.testing.assert_allclose(bert([many[index]])[0], vectors[index], **CLOSE)


def test_nothing_is_computed_ahead_of_requests_meanwhile(bert, monkeypatch):
    decode, seen = pyllama.Context.decode, []

    def looking(context, batch):
        seen.append(len(BUSY))
        if len(seen) == 2:
            raise MemoryError
        return decode(context, batch)

    monkeypatch.setattr(pyllama.Context, "decode", looking)
    n_before = len(BUSY)
    bert(["hello"])
    with pytest.raises(MemoryError):
        bert(["hello"])
    assert seen == [n_before + 1] * 2
    assert len(BUSY) == n_before


def test_many_texts_take_few_batches(bert, monkeypatch):
    sizes = []
    real = pyllama.Context.decode
    monkeypatch.setattr(
        pyllama.Context, "decode", lambda self, batch: (sizes.append(len(batch)), real(self, batch))
    )
    bert(["hello world"] * 100)
    assert len(sizes) == 2
    assert max(sizes) <= 512


def test_no_texts_give_no_vectors(bert):
    assert bert([]).shape == (0, 64)


def test_a_long_text_makes_the_context_larger_and_short_ones_stay_right(write_tiny_model, tmp_path):
    copyfile(write_tiny_model(architecture="bert", n_ctx_train=2048), tmp_path / "long.gguf")
    with ModelPool(tmp_path) as pool:
        embedder = LlamaCppEmbedder(pool.load_model("long"))
        before = embedder(["hello"])
        assert embedder(["z" * 1500]).shape == (1, 64)
        np.testing.assert_allclose(embedder(["hello"]), before, **CLOSE)


# Refused


@pytest.mark.parametrize("text", ["", "  ", None, 3])
def test_a_text_without_content_is_refused_before_anything_is_computed(bert, monkeypatch, text):
    monkeypatch.setattr(pyllama.Context, "decode", lambda *_: pytest.fail("it computed"))
    with pytest.raises(InvalidParameterError) as caught:
        bert(["hello", text])
    assert caught.value.name == "texts[1]"


def test_one_text_is_no_list_of_texts(bert):
    with pytest.raises(InvalidParameterError, match="a list of texts"):
        bert("hello")


def test_a_text_longer_than_the_context_is_refused_unless_it_may_be_cut(pool, bert):
    long = "abcdefghij" * 50
    with pytest.raises(TextTooLongError, match="truncate=True") as caught:
        bert(["hello", long])
    assert isinstance(caught.value, ContextTooLongError)
    assert (caught.value.argument, caught.value.max) == ("texts[1]", 128)
    assert caught.value.actual == len(tokens_of(bert, long))
    cutting = LlamaCppEmbedder(pool.load_model("bert"), truncate=True)
    # One token is BOS.
    np.testing.assert_allclose(cutting([long]), bert([long[:127]]), **CLOSE)


def tokens_of(embedder, text):
    with embedder.loaded.lease() as model:
        return model.vocab.tokenize(text)


def test_a_text_that_is_cut_keeps_the_token_that_ends_it(write_tiny_model, tmp_path, monkeypatch):
    batches = []
    real = pyllama.Context.decode
    monkeypatch.setattr(
        pyllama.Context,
        "decode",
        lambda self, batch: (batches.append(batch.tokens.tolist()), real(self, batch)),
    )
    copyfile(write_tiny_model(architecture="bert", add_eos=True), tmp_path / "ends.gguf")
    with ModelPool(tmp_path, context_length=16) as pool:
        embedder = LlamaCppEmbedder(pool.load_model("ends"), truncate=True)
        embedder(["abcdefghijklmnopqrstuvwxyz"])
        assert batches == [tokens_of(embedder, "abcdefghijklmn")]
        with embedder.loaded.lease() as model:
            assert batches[0][-1] == model.vocab.eos


def test_a_text_that_is_no_unicode_is_refused(bert):
    with pytest.raises(PromptError):
        bert(["\ud800"])


def test_a_model_that_says_nothing_of_pooling_needs_to_be_told(pool):
    with pytest.raises(ConfigurationError, match="pooling='last'"):
        LlamaCppEmbedder(pool.load_model("llama"))


def test_a_pooling_that_does_not_exist_is_refused(pool):
    with pytest.raises(InvalidParameterError, match="median"):
        LlamaCppEmbedder(pool.load_model("llama"), pooling="median")


# Reranking


def scores_alone(embedder, pairs):
    with embedder.loaded.lease() as model:
        rows = []
        for tokens in pairs:
            with pyllama.Context(
                model, n_ctx=256, n_threads=1, embeddings=True, pooling_type="rank"
            ) as context:
                context.decode(pyllama.Batch.from_tokens(tokens))
                rows.append(context.embeddings_seq(0)[0])
        return np.array(rows)


def test_documents_are_scored_as_pairs_with_the_query(pool):
    reranker = LlamaCppEmbedder(pool.load_model("bert"), pooling="rank")
    documents = ["a world", "hello there", "vectors"]
    with reranker.loaded.lease() as model:
        vocab = model.vocab
        query = vocab.tokenize("hello", add_special=False)
        pairs = [
            [vocab.bos, *query, *vocab.tokenize(document, add_special=False)]
            for document in documents
        ]
    scores = reranker.rerank("hello", documents)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, scores_alone(reranker, pairs), rtol=0, atol=5e-3)
    np.testing.assert_allclose(
        reranker.rerank("hello", documents[::-1]), scores[::-1], rtol=0, atol=5e-3
    )
    assert len(set(scores.tolist())) == 3


def test_a_pair_is_framed_by_the_special_tokens_the_model_wants(write_tiny_model, tmp_path):
    framed = write_tiny_model(
        architecture="bert",
        add_eos=True,
        metadata={
            "tokenizer.ggml.add_sep_token": True,
            "tokenizer.ggml.seperator_token_id": 4,
        },
    )
    copyfile(framed, tmp_path / "framed.gguf")
    with ModelPool(tmp_path) as pool:
        reranker = LlamaCppEmbedder(pool.load_model("framed"), pooling="rank")
        with reranker.loaded.lease() as model:
            vocab = model.vocab
            one, two = (vocab.tokenize(text, add_special=False) for text in ("hello", "world"))
            assert (vocab.add_eos, vocab.add_sep, vocab.sep) == (True, True, 4)
        pair = [vocab.bos, *one, vocab.eos, 4, *two, vocab.eos]
        np.testing.assert_allclose(
            reranker.rerank("hello", ["world"]), scores_alone(reranker, [pair]), rtol=0, atol=5e-3
        )


def test_a_reranker_with_a_template_of_its_own_is_asked_by_it(pool):
    reranker = LlamaCppEmbedder(pool.load_model("template"), pooling="rank")
    query, document = "is {document} a word?", "yes, {query}"
    with reranker.loaded.lease() as model:
        prompt = f"Q: {query} D: {document}<|im_end|>"
        pair = model.vocab.tokenize(prompt, add_special=False, parse_special=True)
    np.testing.assert_allclose(
        reranker.rerank(query, [document]), scores_alone(reranker, [pair]), rtol=0, atol=5e-3
    )


@pytest.mark.parametrize("count", [1, 2, 5, 70])
@pytest.mark.parametrize("name", ["decoder", "template"])
def test_a_decoder_computes_the_query_once_for_all_documents(pool, name, count, monkeypatch):
    """An encoder cannot: its tokens depend on those after them."""
    reranker = LlamaCppEmbedder(pool.load_model(name), pooling="rank")
    query, sizes, decode = "which of these is a word, and what is it?", [], pyllama.Context.decode
    documents = [f"{n}, said the world" * (1 + n % 3) for n in range(count)]
    with reranker.loaded.lease() as model:
        n_query = len(model.vocab.tokenize(f"Q: {query} D:", add_special=False))
        prompts = [f"Q: {query} D: {document}<|im_end|>" for document in documents]
        pairs = [
            model.vocab.tokenize(prompt, add_special=False, parse_special=True)
            for prompt in prompts
        ]
    expected = scores_alone(reranker, pairs)
    monkeypatch.setattr(
        pyllama.Context,
        "decode",
        lambda context, batch: sizes.append(len(batch)) or decode(context, batch),
    )
    for _ in range(2):
        sizes.clear()
        np.testing.assert_allclose(reranker.rerank(query, documents), expected, rtol=0, atol=5e-3)
    shares = name == "decoder" and count > 1
    assert sum(sizes) <= sum(map(len, pairs)) - shares * (count - 1) * n_query


def test_texts_that_begin_alike_share_their_beginning(pool, monkeypatch):
    """Where a vector is that of the last token."""
    embedder = LlamaCppEmbedder(pool.load_model("decoder"), pooling="last", normalize=False)
    texts = ["find what answers this: " + text for text in TEXTS]
    np.testing.assert_allclose(
        embedder(texts), [alone(embedder, text, pooling_type="last") for text in texts], **CLOSE
    )
    np.testing.assert_allclose(embedder([texts[0]] * 3), embedder([texts[0]])[[0, 0, 0]], **CLOSE)


def test_control_tokens_in_what_a_reranker_reads_are_text(pool):
    reranker = LlamaCppEmbedder(pool.load_model("template"), pooling="rank")
    query, document = "a word<|im_end|>", "<s>yes</s>"
    with reranker.loaded.lease() as model:
        vocab = model.vocab
        pair = [
            *vocab.tokenize(f"Q: {query} D: {document}", add_special=False),
            *vocab.tokenize("<|im_end|>", add_special=False, parse_special=True),
        ]
    np.testing.assert_allclose(
        reranker.rerank(query, [document]), scores_alone(reranker, [pair]), rtol=0, atol=5e-3
    )


def test_scores_and_vectors_are_not_mixed_up(pool, bert):
    with pytest.raises(ConfigurationError, match="no reranker"):
        bert.rerank("hello", ["world"])
    with pytest.raises(ConfigurationError, match=r"use rerank\(\)"):
        LlamaCppEmbedder(pool.load_model("bert"), pooling="rank")(["hello"])


@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_a_model_without_a_head_does_not_rank(pool, name):
    with pytest.raises(ConfigurationError, match=r"has no head that ranks.*cls\.weight"):
        LlamaCppEmbedder(pool.load_model(name), pooling="rank")
    assert LlamaCppEmbedder(pool.load_model(name), pooling="mean")(["hello"]).shape == (1, 64)


def test_what_is_reranked_is_checked_first(pool):
    reranker = LlamaCppEmbedder(pool.load_model("bert"), pooling="rank")
    assert reranker.rerank("hello", []).shape == (0,)
    for arguments, name in (
        (("", ["x"]), "query"),
        (("x", ["x", ""]), "documents[1]"),
        (("x", "x"), "documents"),
    ):
        with pytest.raises(InvalidParameterError) as caught:
            reranker.rerank(*arguments)
        assert caught.value.name == name
    with pytest.raises(TextTooLongError, match=r"documents\[1\]"):
        reranker.rerank("hello", ["x", "z" * 500])


# Lifetimes and threads


def test_threads_get_their_own_answers(bert):
    expected = {text: bert([text])[0] for text in TEXTS}

    def embed(index):
        texts = [TEXTS[(index + step) % len(TEXTS)] for step in range(3)]
        return texts, bert(texts)

    with ThreadPoolExecutor(8) as threads:
        for texts, vectors in threads.map(embed, range(32)):
            for text, vector in zip(texts, vectors, strict=True):
                np.testing.assert_allclose(vector, expected[text], **CLOSE)


def test_an_embedder_lives_through_eviction_and_ends_with_its_model(write_tiny_model, tmp_path):
    copyfile(write_tiny_model(architecture="bert"), tmp_path / "bert.gguf")
    copyfile(write_tiny_model(), tmp_path / "other.gguf")
    with ModelPool(tmp_path, max_models=1) as pool:
        embedder = LlamaCppEmbedder(pool.load_model("bert"))
        before = embedder(TEXTS)
        pool.load_model("other")
        np.testing.assert_array_equal(embedder(TEXTS), before)
        pool.unload_model("bert")
        with pytest.raises(ModelNotLoadedError, match="load_model"):
            embedder(TEXTS)


def test_copies_share_the_model_and_pickling_is_refused(bert):
    assert copy.deepcopy(bert) is bert
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(bert)


# DSPy


def test_dspy_embeds_and_retrieves_with_it(bert):
    embed = dspy.Embedder(bert, batch_size=2)
    np.testing.assert_allclose(embed(TEXTS), bert(TEXTS), **CLOSE)
    assert embed("hello").shape == (64,)
    np.testing.assert_allclose(asyncio.run(embed.acall(TEXTS)), bert(TEXTS), **CLOSE)
    retrieve = dspy.retrievers.Embeddings(TEXTS, embed, k=2)
    for text in TEXTS:
        assert retrieve(text).passages[0] == text


def test_dspys_cache_tells_embedders_apart(pool, bert):
    raw = LlamaCppEmbedder(pool.load_model("bert"), normalize=False)
    other = LlamaCppEmbedder(pool.load_model("llama"), pooling="last")
    vectors = [dspy.Embedder(embedder)(["hello"]) for embedder in (bert, raw, other)]
    assert not np.allclose(vectors[0], vectors[1])
    assert not np.allclose(vectors[0], vectors[2])
    again = LlamaCppEmbedder(pool.load_model("bert"))
    assert again.__name__ == bert.__name__


@pytest.mark.model
def test_a_real_model_finds_what_is_alike(smollm2_path):
    with ModelPool(smollm2_path.parent, context_length=64) as pool:
        embedder = LlamaCppEmbedder(pool.load_model(smollm2_path.stem), pooling="mean")
        cat, kitten, tax = embedder(
            ["The cat sat on the mat.", "A cat is sitting on a mat.", "Taxes rose by 3% in 2024."]
        )
    assert cat @ kitten > cat @ tax
