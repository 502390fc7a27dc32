"""A chat template's process that stalls, or that the template ends: nothing is made of that."""

from __future__ import annotations

import json
import signal
from shutil import copyfile

import pytest
from chats import TOOLS_AND_THINKING
from fake_generator import fake_model

import pyllama
from adapter.engine.messages import rendered_by
from adapter.engine.tool_arguments import BoundCalls, closed_schema
from adapter.errors import ModelFileError, TemplateAbortedError, TransientError
from adapter.models.pool import ModelPool
from adapter.models.template_trials import calls_tools
from pyllama import _pipes

TOOL = {
    "type": "function",
    "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}},
}
QUESTION = [{"role": "user", "content": "What is it?"}]


@pytest.fixture
def pool(write_tiny_model, tmp_path):
    copyfile(write_tiny_model(chat_template=TOOLS_AND_THINKING), tmp_path / "one.gguf")
    with ModelPool(tmp_path, context_length=64) as pool:
        yield pool


@pytest.fixture(params=["for thinking", "for tools"])
def trial(request):
    """What tells a question of a load from others."""
    return {"for thinking": '"Hello"', "for tools": '"probe"'}[request.param]


@pytest.fixture
def send(monkeypatch):
    """Send a signal to the process of a template when it is asked with a text, so many times."""
    exchange = _pipes.exchange

    def begin(number, text, times):
        left = [text] * times

        def exchanged(process, request, seconds):
            if left and request is not None and text in str(json.loads(request)["arguments"]):
                left.pop()
                process.send_signal(number)
                seconds = 0.01 if number == signal.SIGSTOP else seconds
            return exchange(process, request, seconds)

        monkeypatch.setattr(_pipes, "exchange", exchanged)
        return left

    return begin


def is_able(loaded):
    return loaded.calls_tools and loaded.capabilities["supports_thinking"]


@pytest.mark.parametrize(
    ("number", "times"), [(signal.SIGSTOP, 2), (signal.SIGKILL, 2), (signal.SIGSEGV, 1)]
)
def test_a_load_fails_and_can_be_tried_again(pool, trial, send, number, times):
    left = send(number, trial, times)
    expected = ModelFileError if number == signal.SIGSEGV else TransientError
    with pytest.raises(expected, match="template"):
        pool.load_model("one")
    assert not left
    assert is_able(pool.load_model("one"))


def test_a_load_continues_where_the_process_stalls_once(pool, trial, send):
    left = send(signal.SIGSTOP, trial, 1)
    assert is_able(pool.load_model("one"))
    assert not left


def test_a_conversation_that_ends_the_process_is_not_tried_in_another_form(pool, send):
    loaded = pool.load_model("one")
    left = send(signal.SIGSEGV, "What is it?", 2)
    with pytest.raises(TemplateAbortedError, match="ended its process: signal 11"):
        rendered_by(loaded, [*QUESTION, *QUESTION])
    assert len(left) == 1


@pytest.mark.parametrize("aborted", [pyllama.ChatTemplateAborted, TemplateAbortedError])
def test_a_trial_that_ends_the_process_says_nothing_of_calls(aborted):
    template = pyllama.ChatTemplate(source=TOOLS_AND_THINKING)
    trials = []

    def render(**options):
        if "arguments of function" in json.dumps(options["tools"]) and not trials:
            trials.append(options)
            raise aborted("it took too long")
        return template.apply(**options)

    named = {**TOOL["function"], "name": aborted.__name__}  # what is bound is kept by its inputs
    tools = [{**TOOL, "function": named}]
    schemas = [json.dumps(closed_schema(named["parameters"]))]
    options = {"messages": QUESTION, "tools": tools, "tool_choice": "required"}
    with pytest.raises(aborted):
        BoundCalls(render, schemas)(**options)
    calls = BoundCalls(render, schemas)
    bound = calls(**options)
    fresh = BoundCalls(template.apply, schemas)
    assert bound.grammar == fresh(**options).grammar
    assert calls.adaptations == fresh.adaptations


def test_what_a_refusal_says_of_tools_stays():
    model = fake_model("x", source=TOOLS_AND_THINKING)

    class Template:
        capabilities = model.capabilities
        error = pyllama.ChatTemplateError("no tools")

        def apply(self, *args, **options):
            raise self.error

    template = Template()
    assert not calls_tools(template)
    template.error = pyllama.ChatTemplateAborted("it took too long")
    with pytest.raises(pyllama.ChatTemplateAborted):
        calls_tools(template)
