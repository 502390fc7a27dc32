from __future__ import annotations

import asyncio
import enum

import dspy
import pytest
from dspy.clients.call_result import attributes
from dspy.clients.engines.streaming import EngineChunk
from dspy.streaming import StreamListener, StreamResponse
from fake_generator import adapter_of, fake_model
from hypothesis import given
from hypothesis import strategies as st

from adapter import CutAnswerError
from adapter.errors import ConfigurationError
from adapter.signatures.field_markers import FieldMarkers
from adapter.signatures.llama_cpp_adapter import LlamaCppAdapter
from adapter.signatures.stream_listener import LlamaCppStreamListener


class Colour(enum.Enum):
    RED = "red"


class Typed(dspy.Signature):
    question: str = dspy.InputField()
    colours: list[Colour] = dspy.OutputField()
    code: dspy.Code = dspy.OutputField()


REASONED = dspy.Signature("question -> reasoning, final_answer")


FREE = {"metadata": {"llamacpp": {"grammar": "root ::= .*"}}}
"""Has the answer follow no grammar of the fields, so that it may look like anything."""


def streamed(
    signature, answer, *fields, adapter=None, listener=LlamaCppStreamListener, is_bound=False
):
    """Stream an answer character by character; return each field's chunks and the prediction."""
    ours = adapter_of(fake_model(answer))
    program = dspy.streamify(
        dspy.Predict(signature, cache=False, **({} if is_bound or adapter else FREE)),
        stream_listeners=[listener(field) for field in fields],
    )
    chunks = {field: [] for field in fields}
    first = next(iter(dspy.Predict(signature).signature.input_fields))

    async def main():
        prediction = None
        async for value in program(**{first: "q"}):
            if isinstance(value, StreamResponse):
                assert not chunks[value.signature_field_name] or (
                    not chunks[value.signature_field_name][-1].is_last_chunk
                )
                chunks[value.signature_field_name].append(value)
            else:
                prediction = value
        return prediction

    with dspy.context(lm=ours.lm, adapter=adapter or ours):
        prediction = asyncio.run(main())
    if listener is LlamaCppStreamListener and adapter is None:
        for pieces in chunks.values():
            assert [piece.is_last_chunk for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    return {
        field: [piece.chunk for piece in pieces] for field, pieces in chunks.items()
    }, prediction


def test_each_field_streams_in_pieces_that_add_up_to_its_value():
    answer = "reasoning: two and\ntwo **make** four\n\nFinal Answer: four."
    chunks, prediction = streamed(REASONED, answer, "reasoning", "final_answer")
    assert "".join(chunks["reasoning"]) == prediction.reasoning == "two and\ntwo **make** four"
    assert "".join(chunks["final_answer"]) == prediction.final_answer == "four."
    assert len(chunks["reasoning"]) > 10
    assert len(chunks["final_answer"]) > 3


def test_one_field_alone_can_be_listened_to():
    chunks, prediction = streamed(REASONED, "reasoning: a\nfinal_answer: bc", "final_answer")
    assert chunks == {"final_answer": ["b", "c", ""]}
    assert prediction.final_answer == "bc"


@pytest.mark.parametrize(
    "answer",
    [
        "Paris",
        "The capital is Paris.",
        '{"answer": "Paris"}',
        "Sure, here it is:\nanswer: Paris",
        "**answer: Paris**",
        "```\nanswer: Paris\n```",
        "answer: Paris\nquestion: What is the capital of Spain?\nanswer: Madrid",
        "answer:",
        "answer:\n\n- Paris\n- Lyon\n",
        "answer: see\n```\nanswer: code\n```\nend",
        "answer: see\n```\nanswer: code",
    ],
)
def test_the_chunks_are_the_value_whatever_the_form(answer):
    chunks, prediction = streamed("question -> answer", answer, "answer")
    assert "".join(chunks["answer"]) == prediction.answer


MAIL = "Subject: Rain\n\nDear all,\nsubject: rain\n- Subject: x"
YAML = "title: a\n```\nyaml: b\n```\ntitle: c"
TALK = "speaker: hi\nSpeaker: ho\n\nspeaker:"
CODE = "```python\ntext: x\n```"


@pytest.mark.parametrize(
    ("signature", "values"),
    [
        ("subject -> email", {"email": f"\n{MAIL}"}),
        ("subject -> email", {"email": " Subject: Rain"}),
        ("subject -> note, email", {"note": " subject: a", "email": f"\n{MAIL}"}),
        ("title -> yaml", {"yaml": f"\n{YAML}"}),
        ("speaker -> dialogue, n: int", {"dialogue": f"\n{TALK}", "n": " 3"}),
        ("a -> code: dspy.Code, text", {"code": f"\n{CODE}", "text": " ok\na: b"}),
        ("text -> summary", {"summary": ""}),
    ],
)
def test_a_bound_answer_is_what_stands_between_its_markers(signature, values):
    answer = "\n".join(f"{name}:{text}" for name, text in values.items())
    chunks, prediction = streamed(signature, answer, *values, is_bound=True)
    for name, text in values.items():
        value = getattr(prediction, name)
        value = f"```python\n{value.code}\n```" if name == "code" else str(value)
        assert value == text.strip() == "".join(chunks[name])


def test_an_answer_that_is_cut_in_its_last_text_keeps_all_of_it():
    model = fake_model("email: Dear\n```\nemail: x\nsubject: y" + "z" * 50)
    adapter = adapter_of(model, max_tokens=40)
    with dspy.context(lm=adapter.lm, adapter=adapter):
        email = dspy.Predict("subject -> email")(subject="s").email
    assert email == "Dear\n```\nemail: x\nsubject: y" + "z" * 5


def test_a_cut_within_a_block_of_an_earlier_field_is_reported():
    model = fake_model("note: a\n```\nemail: x\nmore" + "z" * 50)
    adapter = adapter_of(model, max_tokens=40)
    with dspy.context(lm=adapter.lm, adapter=adapter), pytest.raises(CutAnswerError):
        dspy.Predict("subject -> note, email")(subject="s")


def test_a_typed_field_streams_as_it_is_written():
    answer = "colours: - Red\n- RED\ncode:\n```python\ncolours: int = 3\n```"
    chunks, prediction = streamed(Typed, answer, "colours", "code")
    assert prediction.colours == [Colour.RED, Colour.RED]
    assert prediction.code.code == "colours: int = 3"
    assert "".join(chunks["colours"]) == "- Red\n- RED"
    assert "".join(chunks["code"]) == "```python\ncolours: int = 3\n```"


def test_an_answer_out_of_dspys_cache_is_not_streamed():
    adapter = adapter_of(fake_model("answer: Paris"))
    listener = LlamaCppStreamListener("answer", allow_reuse=True)
    program = dspy.streamify(dspy.Predict("question -> answer"), stream_listeners=[listener])

    async def main():
        return [value async for value in program(question="q")]

    with dspy.context(lm=adapter.lm, adapter=adapter):
        first, second = asyncio.run(main()), asyncio.run(main())
    assert len(first) > 2
    [prediction] = second
    assert prediction.answer == "Paris"


def test_a_listener_is_used_again_when_it_may_be():
    adapter = adapter_of(fake_model("answer: Paris"))
    listener = LlamaCppStreamListener("answer", allow_reuse=True)
    program = dspy.streamify(
        dspy.Predict("question -> answer", cache=False), stream_listeners=[listener]
    )

    async def main():
        values = [value async for value in program(question="q")]
        return "".join(value.chunk for value in values if isinstance(value, StreamResponse))

    with dspy.context(lm=adapter.lm, adapter=adapter):
        assert [asyncio.run(main()) for _ in range(2)] == ["Paris", "Paris"]


@pytest.mark.parametrize(
    ("adapter", "answer"),
    [
        (dspy.ChatAdapter(), "[[ ## answer ## ]]\nParis\n\n[[ ## completed ## ]]"),
        (dspy.JSONAdapter(), '{"answer": "Paris"}'),
        (dspy.XMLAdapter(), "<answer>\nParis\n</answer>"),
    ],
    ids=["chat", "json", "xml"],
)
def test_under_dspys_adapters_it_listens_as_dspys_own_does(adapter, answer):
    chunks, theirs = (
        streamed("question -> answer", answer, "answer", adapter=adapter, listener=listener)[0]
        for listener in (LlamaCppStreamListener, StreamListener)
    )
    assert chunks == theirs
    assert "".join(chunks["answer"]).lstrip(' "').startswith("Paris")


def test_dspys_own_listener_does_not_know_our_adapter():
    """Why there is a listener of our own."""
    with dspy.context(adapter=LlamaCppAdapter()), pytest.raises(ValueError, match="LlamaCppAda"):
        StreamListener("answer").receive(chunk_of(content="answer: Paris"))


def test_an_answer_that_does_not_parse_is_an_error_and_not_asked_again_after_output():
    model = fake_model("label: purple")
    adapter = adapter_of(model)
    program = dspy.streamify(
        dspy.Predict("question -> label: Literal['red', 'blue']"),
        stream_listeners=[LlamaCppStreamListener("label")],
    )

    async def main():
        return [value async for value in program(question="q")]

    with (
        dspy.context(lm=adapter.lm, adapter=adapter),
        pytest.raises(dspy.AdapterParseError, match="purple"),
    ):
        asyncio.run(main())
    assert len(model.generator.requests) == 1


def test_a_chunk_of_usage_alone_adds_nothing():
    """As providers send it that another lm may talk to, at the end or in between."""
    predict = dspy.Predict("question -> answer")
    listener = LlamaCppStreamListener("answer", predict=predict)
    usage = EngineChunk(id=None, model="m", predict_id=0, choices=[])
    with dspy.context(adapter=LlamaCppAdapter()):
        assert listener.receive(usage) is None
        assert listener.receive(chunk_of(content="answer: 4\n")).chunk == "4"
        assert listener.receive(usage) is None
        assert listener.finalize().is_last_chunk


def test_native_reasoning_streams_without_markers():
    """As an engine with native reasoning sends it: beside the text, in pieces of its own."""
    predict = dspy.ChainOfThought("question -> answer").predict
    predict.signature = predict.signature.with_updated_fields("reasoning", type_=dspy.Reasoning)
    listener = LlamaCppStreamListener("reasoning", predict=predict)
    with dspy.context(adapter=LlamaCppAdapter()):
        received = [
            listener.receive(chunk_of(reasoning_content="two ")),
            listener.receive(chunk_of(reasoning_content="and two")),
            listener.receive(chunk_of(content="answer: 4")),
            listener.receive(chunk_of(finish="stop")),
        ]
    pieces = [piece.chunk for piece in received if piece is not None]
    assert pieces == ["two ", "and two", ""]
    assert received[-1].is_last_chunk


def chunk_of(finish=None, **delta):
    choice = {"index": 0, "delta": {"content": None, **delta}, "finish_reason": finish}
    return EngineChunk(id=None, model="m", predict_id=0, choices=[attributes(choice)])


LINES = st.lists(
    st.sampled_from(
        [
            "reasoning: ", "**Reasoning:** ", "**final_answer: ", "- Final Answer", ": ", "\n",
            "\n\n", "```", "\n```python\n", "*", "__", "two and two", "question: ", "final", "_ans",
            "1. ", "# ", "\u00a0", " ", "\nfinal_answer: ", "\nquestion: ",
        ]
    ),
    max_size=24,
)  # fmt: skip


@given(LINES, st.integers(min_value=1, max_value=7), st.booleans())
def test_what_is_settled_never_changes(parts, size, is_bound):
    """For any text, cut anywhere: only more of the value comes, and it ends as the parser's."""
    text = "reasoning: " * is_bound + "".join(parts)
    whole = FieldMarkers(REASONED, is_bound=is_bound)
    whole.push(text)
    values = whole.values()
    growing = FieldMarkers(REASONED, is_bound=is_bound)
    certain = {}
    for start in range(0, len(text), size):
        growing.push(text[start : start + size])
        for name in REASONED.output_fields:
            settled = growing.settled(name)
            if settled is None:
                assert name not in certain
                continue
            before = certain.get(name)
            assert before is None or settled.text.startswith(before.text)
            assert before is None or not before.complete or settled == before
            certain[name] = settled
    assert growing.values() == values
    for name, settled in certain.items():
        assert values[name].startswith(settled.text)
        assert not settled.complete or settled.text == values[name]


def test_dspys_listener_is_refused_before_work_starts_and_ours_named():
    model = fake_model("answer: a")
    adapter = adapter_of(model)
    program = dspy.streamify(
        dspy.Predict("question -> answer"), stream_listeners=[StreamListener("answer")]
    )

    async def main():
        async for _ in program(question="?"):
            pass

    with (
        dspy.context(lm=adapter.lm, adapter=adapter),
        pytest.raises(ConfigurationError, match=r"LlamaCppStreamListener\('answer'\)"),
    ):
        asyncio.run(main())
    assert model.generator.requests == []
