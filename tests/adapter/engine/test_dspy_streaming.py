"""dspy.streamify on the real model, field by field, whatever the adapter."""

from __future__ import annotations

import asyncio

import dspy
import pytest
from dspy.streaming import StreamListener, StreamResponse

from adapter import LlamaCppStreamListener

pytestmark = pytest.mark.model


def chain_of_thought():
    program = dspy.ChainOfThought("question -> answer", cache=False)
    program.predict.demos = [
        dspy.Example(question="1+1?", reasoning="1 and 1 make 2.", answer="2"),
        dspy.Example(question="3+4?", reasoning="3 and 4 make 7.", answer="7"),
    ]
    return program


def fields_of(values):
    chunks = [value for value in values if isinstance(value, StreamResponse)]
    names = dict.fromkeys(chunk.signature_field_name for chunk in chunks)
    return {
        name: [chunk for chunk in chunks if chunk.signature_field_name == name] for name in names
    }


def listeners():
    return [LlamaCppStreamListener("reasoning"), LlamaCppStreamListener("answer")]


def test_fields_stream_token_by_token(smollm2_adapter):
    adapter = smollm2_adapter()
    stream = dspy.streamify(chain_of_thought(), stream_listeners=listeners())

    async def main():
        return [value async for value in stream(question="2+2?")]

    values = asyncio.run(main())
    prediction = values[-1]
    fields = fields_of(values)
    assert list(fields) == ["reasoning", "answer"]
    for name, chunks in fields.items():
        assert "".join(chunk.chunk for chunk in chunks) == str(prediction[name])
        assert [chunk.is_last_chunk for chunk in chunks[:-1]] == [False] * (len(chunks) - 1)
        assert chunks[-1].is_last_chunk
    assert len(fields["reasoning"]) > 3
    assert adapter.lm.history[-1]["usage"]["completion_tokens"] > 0


def test_async_programs_and_sync_streams(smollm2_adapter):
    smollm2_adapter()
    awaited = dspy.streamify(
        chain_of_thought(), stream_listeners=listeners(), is_async_program=True
    )

    async def main():
        return [value async for value in awaited(question="2+2?")]

    plain = dspy.streamify(chain_of_thought(), stream_listeners=listeners(), async_streaming=False)
    first, second = (
        {
            name: "".join(chunk.chunk for chunk in chunks)
            for name, chunks in fields_of(values).items()
        }
        for values in (asyncio.run(main()), list(plain(question="2+2?")))
    )
    assert first == second
    assert set(first) == {"reasoning", "answer"}


@pytest.mark.parametrize(
    "adapter", [dspy.ChatAdapter(), dspy.JSONAdapter(), dspy.XMLAdapter()], ids=lambda a: type(a)
)
def test_dspys_own_listeners_work_with_dspys_adapters(smollm2_adapter, adapter):
    smollm2_adapter(max_tokens=20)
    predict = dspy.Predict("question -> answer", cache=False)
    predict.demos = chain_of_thought().predict.demos
    stream = dspy.streamify(predict, stream_listeners=[StreamListener("answer")])

    async def main():
        return [value async for value in stream(question="2+2?")]

    with dspy.context(adapter=adapter):
        *chunks, prediction = asyncio.run(main())
    streamed = "".join(chunk.chunk for chunk in chunks)
    assert prediction.answer in streamed
