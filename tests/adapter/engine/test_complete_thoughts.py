"""Answers of models that think, completed in time whatever else the request asks for."""

from __future__ import annotations

import json
import re

import dspy
import pytest
from chats import TOOLS_AND_THINKING
from dspy.lm15 import Config, FunctionTool, Message, Request, ThinkingPart, ToolCallPart, ToolChoice
from dspy.utils.exceptions import LMError

from adapter import LlamaCppAdapter, LlamaCppConfig, ModelPool

BEGIN = "{{- '<|im_start|>assistant\n' }}"
TEMPLATES = {
    "opened by the prompt": TOOLS_AND_THINKING.replace(BEGIN, BEGIN + "\n<think>"),
    "opened by the model": TOOLS_AND_THINKING,
}
ADD = FunctionTool(
    "add",
    "Adds.",
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
)
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "string"}, "n": {"enum": [1, 2]}},
    "required": ["a", "n"],
}
GRAMMAR = r'root ::= "say: " [a-z ]+ "\nend: " ("yes" | "no")'
END = "</think>"


@pytest.fixture(scope="module", params=TEMPLATES)
def lm(request, write_tiny_model):
    """Random weights, whose vocabulary spells the tags with several tokens."""
    path = write_tiny_model(chat_template=TEMPLATES[request.param], n_ctx_train=2048)
    with ModelPool(path.parent, context_length=1024) as pool:
        config = LlamaCppConfig(path.stem, temperature=1.0, enable_cache=False)
        yield LlamaCppAdapter.from_loaded_model(pool.load_model(path.stem), config).lm


def asked(lm, form, max_tokens, budget, seed=1, **more):
    llamacpp = {} if budget is None else {"reasoning_budget_tokens": budget}
    tools = ()
    if form == "grammar":
        llamacpp["grammar"] = GRAMMAR
    elif form == "schema":
        more["response_format"] = {"type": "json_schema", "schema": SCHEMA}
    else:
        tools, more["tool_choice"] = (ADD,), ToolChoice("required")
    extensions = {"metadata": {"llamacpp": llamacpp}}
    config = Config(max_tokens=max_tokens, seed=seed, extensions=extensions, **more)
    return Request(lm.model, (Message.user("Hi"),), tools=tools, config=config)


def fewest(lm, form):
    with pytest.raises(LMError, match="at least") as refused:
        lm(asked(lm, form, 1, None))
    return int(str(refused.value).partition("at least ")[2].partition(",")[0])


def require_whole(form, response):
    thoughts = "".join(part.text for part in response.message.parts_of(ThinkingPart))
    assert not any(thoughts.endswith(END[:n]) for n in range(2, len(END))), thoughts
    if form == "tool":
        [call] = response.message.parts_of(ToolCallPart)
        assert isinstance(call.input["a"], int)
        return
    assert response.finish_reason == "stop"
    text = response.text.strip()
    if form == "schema":
        assert json.loads(text)["n"] in (1, 2)
    else:
        assert re.fullmatch(r"say: [a-z ]+\nend: (yes|no)", text)


@pytest.mark.parametrize("form", ["grammar", "schema", "tool"])
def test_a_budget_and_few_tokens_end_thoughts_together(lm, form):
    least = fewest(lm, form)
    n_end = len(END) + 4  # and space
    for budget in (0, 1, 4, 9):
        for more in (0, 1, 2, 3, 5, 8, 12, 20):
            response = lm(asked(lm, form, least + more, budget))
            require_whole(form, response)
            if form != "tool" and response.usage.reasoning_tokens:
                # Of the tokens of a character some may come after the budget.
                assert response.usage.reasoning_tokens <= budget + n_end + len("<think>") + 8


@pytest.mark.parametrize("form", ["grammar", "schema", "tool"])
def test_streams_probabilities_and_stops_change_no_token(lm, form):
    least = fewest(lm, form)
    for more in (0, 3, 9):
        request = asked(lm, form, least + more, 4)
        response = lm(request)
        *events, end = lm.engine.stream(request)
        assert end.finish_reason == response.finish_reason
        texts = [event.delta for event in events if hasattr(event, "delta")]
        for kind, part in (("text", response.text or ""), ("thinking", None)):
            text = "".join(delta.text for delta in texts if delta.type == kind)
            thoughts = "".join(one.text for one in response.message.parts_of(ThinkingPart))
            assert text == (thoughts if part is None else part)
        require_whole(form, lm(asked(lm, form, least + more, 4, logprobs=0)))
        stopped = lm(asked(lm, form, least + more, 4, stop=("\N{SNOWMAN}",)))
        assert stopped.message == response.message or form == "tool"  # calls have ids of their own


def test_each_of_several_candidates_is_complete(lm):
    signature = dspy.Signature("question -> notes, tags: list[str], sure: bool")
    adapter = LlamaCppAdapter(lm)
    metadata = {"llamacpp": {"reasoning_budget_tokens": 3}}
    with dspy.context(lm=lm, adapter=adapter):
        predict = dspy.Predict(signature, n=3, max_tokens=60, temperature=1.0, metadata=metadata)
        found = predict(question="Why?")
    assert len(found.completions.notes) == 3
    assert all(isinstance(sure, bool) for sure in found.completions.sure)
    [entry] = lm.history[-1:]
    assert {response.finish_reason for response in entry["response"]} == {"stop"}


def test_a_start_of_thoughts_within_an_answer_is_text(lm):
    """The budget ends thoughts, and writes nothing into values."""
    grammar = 'root ::= "say: <think>" [a-z]{9} "."'
    request = asked(lm, "grammar", 80, 1)
    metadata = {"llamacpp": {"grammar": grammar, "reasoning_budget_tokens": 1}}
    config = Config(max_tokens=80, seed=1, extensions={"metadata": metadata})
    response = lm(Request(lm.model, request.messages, config=config))
    assert re.fullmatch(r"say: <think>[a-z]{9}\.", response.text.strip())
