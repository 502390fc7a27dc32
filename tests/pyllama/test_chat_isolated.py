"""Chat templates in a process of their own: the same results, and hostile ones end there."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import warnings
from contextlib import suppress

import pytest
from chats import CONVERSATION, TOOL, TOOLS_AND_THINKING

import pyllama
from pyllama import (
    ChatProcessError,
    ChatTemplate,
    ChatTemplateAborted,
    ChatTemplateError,
    _pipes,
    chat_process,
)

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def isolated():
    return ChatTemplate(source=TOOLS_AND_THINKING, isolated=True)


def process_of(template):
    return template._engine._template._process


def test_the_same_as_in_this_process(isolated):
    here = ChatTemplate(source=TOOLS_AND_THINKING)
    assert isolated.source == here.source
    assert isolated.capabilities == here.capabilities
    for options in ({}, {"tools": [TOOL]}, {"json_schema": {"type": "array"}}):
        assert isolated.apply(CONVERSATION, **options) == here.apply(CONVERSATION, **options)
    parser = isolated.apply(CONVERSATION, tools=[TOOL]).parser
    assert parser.parse("Three.").content == "Three."


def test_a_models_tokens(tiny):
    """The vocabulary adds BOS when it tokenizes, so that a prompt does not begin with it."""
    source = "{{ bos_token }}{{ messages[0].content }}{{ bos_token }}{{ eos_token }}"
    prompts = [
        ChatTemplate(tiny, source, isolated=isolated).apply(HELLO).prompt
        for isolated in (True, False)
    ]
    assert prompts == ["Hello<s></s>"] * 2


def test_a_models_own_template_outlives_it(tiny_model_path):
    with pyllama.Model(tiny_model_path, vocab_only=True) as model:
        template = ChatTemplate(model, isolated=True)
        expected = ChatTemplate(model).apply(CONVERSATION)
    assert template.apply(CONVERSATION) == expected


FOREVER = [
    "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "{% for a in range(0, 9223372036854775807, 9223372036854775806) %}{% endfor %}",
]
MUCH = [
    "{{ range(100000000000) }}",
    "{{ 'x' * 100000000000 }}",
    "{{ 'x' | indent(100000000000) }}",
    "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "{% set n = namespace(a=['x']) %}{% for i in range(60) %}{% set n.a = [n.a, n.a] %}{% endfor %}"
    "{{ n.a | tojson }}",
]
DEADLY = [
    "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "{% set n = namespace() %}{% macro m() %}{% set n.f = caller %}{{ caller() }}{% endmacro %}"
    "{% call m() %}{{ n.f() }}{% endcall %}",
    "{% set a = [] %}{% set _ = a.append(a) %}{{ a }}",
    "{% set n = namespace() %}{% set n.n = n %}{{ n | tojson }}",
    "{{ 1 is divisibleby(0) }}",
]


@pytest.mark.parametrize("source", [*FOREVER, *MUCH, *DEADLY])
def test_a_hostile_template_is_an_error(monkeypatch, source):
    monkeypatch.setattr(chat_process, "PROCESSOR_SECONDS", 1)
    monkeypatch.setattr(chat_process, "CALL_SECONDS", 60)
    with pytest.raises(ChatTemplateError):
        ChatTemplate(source=source, isolated=True).apply(HELLO)


def test_what_a_template_did_is_reported(monkeypatch):
    with pytest.raises(ChatTemplateAborted, match="ended its process: signal"):
        ChatTemplate(source=DEADLY[0], isolated=True)
    monkeypatch.setattr(chat_process, "PROCESSOR_SECONDS", 1)
    monkeypatch.setattr(chat_process, "CALL_SECONDS", 60)
    with pytest.raises(ChatTemplateAborted, match="more than 1 seconds of a processor"):
        ChatTemplate(source=FOREVER[0], isolated=True)


def test_it_continues_in_another_process():
    source = (
        "{% macro bomb() %}{{ bomb() }}{% endmacro %}"
        "{% if messages[0].content == 'now' %}{{ bomb() }}{% endif %}{{ messages[0].content }}"
    )
    template = ChatTemplate(source=source, isolated=True)
    assert template.apply(HELLO).prompt == "Hello"
    first = process_of(template).pid
    with pytest.raises(ChatTemplateError, match="ended its process"):
        template.apply([{"role": "user", "content": "now"}])
    assert template.apply(HELLO).prompt == "Hello"
    assert process_of(template).pid != first


def test_a_process_that_others_end_is_started_again():
    template = ChatTemplate(source="{{ messages[0].content }}", isolated=True)
    for number in (signal.SIGKILL, signal.SIGTERM):
        process_of(template).send_signal(number)
        process_of(template).wait()
        assert template.apply(HELLO).prompt == "Hello"


SLOW = (
    "{% if messages[0].content == 'slow' %}"
    "{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}"
    "{% endif %}{{ messages[0].content }}"
)


def test_a_process_that_others_end_twice_is_not_the_templates_fault():
    template = ChatTemplate(source=SLOW, isolated=True)
    ended = []

    def kill_all():
        while len(ended) < 2:
            process = process_of(template)
            if process is not None and process.pid not in ended:
                threading.Event().wait(0.3)
                process.kill()
                ended.append(process.pid)
            threading.Event().wait(0.01)

    thread = threading.Thread(target=kill_all)
    thread.start()
    with pytest.raises(ChatProcessError, match="ended from outside, by SIGKILL"):
        template.apply([{"role": "user", "content": "slow"}])
    thread.join()
    assert template.apply(HELLO).prompt == "Hello"


def test_a_process_that_cannot_start_is_not_the_templates_fault(monkeypatch):
    template = ChatTemplate(source="{{ messages[0].content }}", isolated=True)
    process_of(template).kill()
    process_of(template).wait()

    def refuse(*args, **kwargs):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with monkeypatch.context() as patched:
        patched.setattr(chat_process.ChildProcess, "__init__", refuse)
        with pytest.raises(ChatProcessError, match=r"cannot start: .*unavailable"):
            template.apply(HELLO)
    assert template.apply(HELLO).prompt == "Hello"


def test_a_process_that_ends_before_it_has_the_template_is_not_the_templates_fault(monkeypatch):
    template = ChatTemplate(source="{{ messages[0].content }}", isolated=True)
    process_of(template).kill()
    process_of(template).wait()
    with monkeypatch.context() as patched:
        patched.setattr(chat_process._chat_worker, "__file__", "no such program")
        with pytest.raises(ChatProcessError, match=r"cannot start: exit code 2"):
            template.apply(HELLO)
        with pytest.raises(ChatProcessError, match=r"cannot start: exit code 2"):
            ChatTemplate(source="{{ messages[0].content }}", isolated=True)
    assert template.apply(HELLO).prompt == "Hello"


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), KeyboardInterrupt()])
def test_a_process_that_cannot_be_watched_does_not_go_on_without_the_template(monkeypatch, error):
    """Where pipes cannot be polled, a thread watches it."""
    monkeypatch.setattr(_pipes, "POLLS", False)
    template = ChatTemplate(source="{{ messages[0].content }}", isolated=True)
    process_of(template).kill()
    process_of(template).wait()
    start, starts = threading.Timer.start, []

    def start_thread(timer):
        starts.append(timer)
        if len(starts) == 2:  # the first finds that the process has ended
            raise error
        start(timer)

    monkeypatch.setattr(threading.Timer, "start", start_thread)
    with pytest.raises((ChatProcessError, KeyboardInterrupt)):
        template.apply(HELLO)
    assert template.apply(HELLO).prompt == "Hello"


@pytest.fixture
def stall(monkeypatch):
    """Stop the process at the next calls of a function, which gets no answer then."""
    exchange, stalls = _pipes.exchange, []

    def stalling(process, request, seconds):
        if request is not None and stalls and json.loads(request)["function"] == stalls[0]:
            stalls.pop()
            process.send_signal(signal.SIGSTOP)
            seconds = 0.01
        return exchange(process, request, seconds)

    monkeypatch.setattr(_pipes, "exchange", stalling)

    def begin(function, times):
        stalls.extend([function] * times)
        return stalls

    return begin


@pytest.mark.parametrize("polls", [False, True])
def test_a_process_that_stalls_once_is_started_again(stall, monkeypatch, polls):
    monkeypatch.setattr(_pipes, "POLLS", polls)
    template = ChatTemplate(source="{{ messages[0].content }}", isolated=True)
    left = stall("guarded_chat_render", 1)
    assert template.apply(HELLO).prompt == "Hello"
    assert not left


def test_a_process_that_stalls_reports_nothing_of_the_template(stall):
    template = ChatTemplate(source=TOOLS_AND_THINKING, isolated=True)
    left = stall("guarded_chat_render", 2)
    with pytest.raises(ChatProcessError, match="did not answer within 10 seconds"):
        _ = template.capabilities
    assert not left
    assert template.capabilities["supports_thinking"]


def test_a_template_that_ends_its_process_does_not_tell_what_it_can():
    source = (
        "{% macro bomb() %}{{ bomb() }}{% endmacro %}"
        "{% if messages[0].content == 'Hello' %}{{ bomb() }}{% endif %}{{ messages[0].content }}"
    )
    template = ChatTemplate(source=source, isolated=True)
    with pytest.raises(ChatTemplateAborted):
        _ = template.capabilities
    assert template.apply([{"role": "user", "content": "Good day"}]).prompt == "Good day"


def test_a_chat_that_is_too_long_is_refused_before_it_is_sent(isolated, monkeypatch):
    process = process_of(isolated)
    monkeypatch.setattr(_pipes, "MAX_BYTES", 5000)
    with pytest.raises(ChatTemplateError, match=r"takes \d,\d+ bytes .* at most 5,000"):
        isolated.apply([{"role": "user", "content": "x" * 6000}])
    assert isolated.apply(HELLO).prompt
    assert process_of(isolated) is process


def test_long_chats_pass_through_the_pipes(isolated):
    text = "Long \N{SNOWMAN}" * 500_000
    assert text in isolated.apply([{"role": "user", "content": text}]).prompt


class Interrupt:
    """Raises KeyboardInterrupt in this thread at one line, call or return of the modules'."""

    def __init__(self, at, *modules):
        self.left = at
        self.files = [module.__file__ for module in modules]

    def __enter__(self):
        sys.settrace(self.trace)

    def __exit__(self, *exc_info):
        sys.settrace(None)

    def trace(self, frame, event, argument):
        # No signal comes between the end of a with block and its lock's release, as it would here.
        if frame.f_code.co_filename not in self.files or frame.f_code.co_name == "call":
            return None
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.trace


@pytest.mark.parametrize(("restarts", "polls"), [(False, False), (False, True), (True, True)])
def test_an_interrupted_call_leaves_the_next_one_alone(monkeypatch, restarts, polls):
    monkeypatch.setattr(_pipes, "POLLS", polls)
    modules = [chat_process] if restarts else [chat_process, _pipes]
    template = ChatTemplate(source="{{ messages[0].content }}", isolated=True)
    for at in range(10_000):
        if restarts:
            process_of(template).kill()
            process_of(template).wait()
        interrupt = Interrupt(at, *modules)
        with suppress(KeyboardInterrupt), interrupt:
            assert template.apply([{"role": "user", "content": "interrupted"}]).prompt
        used = process_of(template)
        assert template.apply(HELLO).prompt == "Hello", at
        if used is not None and used is not process_of(template):
            assert used.returncode is not None, at
        if interrupt.left >= 0:
            break
    assert at > 20


@pytest.mark.parametrize("closed", [False, True])
def test_a_process_that_the_exit_handler_ends_is_started_again(closed):
    """The handler has the process's finalizer, and other threads may still make calls."""
    template = ChatTemplate(source="{{ messages[0].content }}", isolated=True)
    process = process_of(template)
    template._engine._template._end.detach()
    process.kill()
    if closed:
        process.wait()
        process.stdin.close()
        process.stdout.close()
    assert template.apply(HELLO).prompt == "Hello"


def test_a_template_that_fails_when_it_is_started_again_is_tried_again(monkeypatch):
    template = ChatTemplate(source="{{ messages[0].content }}", isolated=True)
    process_of(template).kill()
    process_of(template).wait()
    with monkeypatch.context() as patched:
        patched.setattr(template._engine._template, "_arguments", ["{% nonsense %}", "", ""])
        with pytest.raises(ChatTemplateError, match="nonsense"):
            template.apply(HELLO)
    assert template.apply(HELLO).prompt == "Hello"


def test_refusals_come_as_they_are(isolated):
    with pytest.raises(ChatTemplateError, match="Unknown statement: nonsense"):
        ChatTemplate(source="{% nonsense %}", isolated=True)
    process = process_of(isolated)
    with pytest.raises(ChatTemplateError, match="content"):
        isolated.apply([{"role": "user"}])
    assert process_of(isolated) is process
    assert isolated.apply(HELLO).prompt


def test_the_process_ends_with_the_template():
    template = ChatTemplate(source="{{ messages[0].content }}", isolated=True)
    process = process_of(template)
    assert process.poll() is None
    del template
    gc.collect()
    assert process.returncode is not None


@pytest.mark.parametrize("where", ["weakref.finalize", "wait"])
def test_the_process_ends_whatever_line_is_interrupted(monkeypatch, where):
    pids, template = [], None
    start = subprocess.Popen.__init__

    def noted(self, *args, **kwargs):
        start(self, *args, **kwargs)
        pids.append(self.pid)

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "__init__", noted)
    if where == "wait":
        template = ChatTemplate(source="{{ messages[0].content }}", isolated=True)
        monkeypatch.setattr(subprocess.Popen, "wait", interrupt)
        with pytest.raises(KeyboardInterrupt):
            template._engine._template._stop()
    else:
        monkeypatch.setattr(chat_process.weakref, "finalize", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ChatTemplate(source="{{ messages[0].content }}", isolated=True)
    monkeypatch.undo()
    del template
    gc.collect()
    (pid,) = pids
    with pytest.raises(ChildProcessError):  # it has ended, and was waited for
        os.waitpid(pid, os.WNOHANG)


def test_threads_may_share_it(isolated):
    expected = isolated.apply(CONVERSATION)
    different = []

    def work():
        different.extend(
            rendered for _ in range(20) if (rendered := isolated.apply(CONVERSATION)) != expected
        )

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not different


def test_a_forked_process_uses_one_of_its_own(isolated):
    expected = isolated.apply(CONVERSATION)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
        child = os.fork()
    if child == 0:
        try:
            parents = process_of(isolated).pid
            same = isolated.apply(CONVERSATION) == expected
            os._exit(0 if same and process_of(isolated).pid != parents else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert isolated.apply(CONVERSATION) == expected
