"""What the process of a template sends is checked: the template might have taken it over."""

from __future__ import annotations

import json

import pytest
from memory import resident_bytes

from pyllama import ChatProcessError, ChatTemplate, ChatTemplateAborted, _pipes, chat_process

HELLO = [{"role": "user", "content": "Hello"}]
SOURCE = "{{ messages[0].content }}"

WORKER = """
import struct, sys

def send(data, length=None):
    sys.stdout.buffer.write(struct.pack("<I", len(data) if length is None else length) + data)
    sys.stdout.buffer.flush()

send(b"{{}}")
for answer, length in {answers}:
    size = struct.unpack("<I", sys.stdin.buffer.read(4))[0]
    sys.stdin.buffer.read(size)
    send(answer, length)
sys.stdin.buffer.read()
"""


def result(text):
    return json.dumps({"result": text}).encode(), None


@pytest.fixture(scope="module")
def answers():
    """What an honest process says of the template, and of a conversation."""
    heard = []
    with pytest.MonkeyPatch.context() as patched:
        exchange = _pipes.exchange

        def listen(*args):
            heard.append(exchange(*args))
            return heard[-1]

        patched.setattr(_pipes, "exchange", listen)
        ChatTemplate(source=SOURCE, isolated=True).apply(HELLO)
    description, rendered, applied = (json.loads(json.loads(one)["result"]) for one in heard[1:])
    return description, rendered, applied


@pytest.fixture
def taken_over(monkeypatch, tmp_path):
    """A template whose process answers as it likes."""

    def template(*answers):
        worker = tmp_path / "worker.py"
        worker.write_text(WORKER.format(answers=list(answers)))
        monkeypatch.setattr(chat_process._chat_worker, "__file__", str(worker))
        return ChatTemplate(source=SOURCE, isolated=True)

    return template


NO_ANSWERS = [
    (b"{}", None),
    (b"[]", None),
    (b"", None),
    (b"nonsense", None),
    (b"\xff\xfe", None),
    (b"[" * 100_000, None),
    (b"1" * 10_000, None),
    (b'{"result": 5}', None),
    (b'{"error": ["failed"]}', None),
    (b'{"result": ""}{}', 14),  # and the next one
    (b"{}", 2**32 - 1),
    (b"{}", _pipes.MAX_BYTES + 1),
    result("nonsense"),
    result("[]"),
    result("{}"),
    result("[" * 100_000),
    result('{"source": "", "capabilities": {}, "is_analyzed": true}'),
]


@pytest.mark.parametrize("answer", NO_ANSWERS, ids=range(len(NO_ANSWERS)))
def test_what_is_no_answer(taken_over, answer):
    before = resident_bytes()
    with pytest.raises(ChatTemplateAborted, match=r"sent|something else"):
        taken_over(answer)
    assert resident_bytes() - before < 2**27


def test_what_is_announced_takes_no_memory_before_it_comes(taken_over, monkeypatch):
    monkeypatch.setattr(chat_process, "CALL_SECONDS", 1)
    before = resident_bytes()
    with pytest.raises(ChatProcessError, match=r"did not answer within 1 seconds"):
        taken_over((b"{}", _pipes.MAX_BYTES))
    assert resident_bytes() - before < 2**27


@pytest.mark.parametrize("which", ["description", "rendered", "applied"])
def test_each_part_of_an_answer(taken_over, answers, which):
    """Each missing, and each as something else."""
    honest = [result(json.dumps(one)) for one in answers]
    place = ["description", "rendered", "applied"].index(which)
    assert taken_over(*honest).apply(HELLO).prompt == "Hello"
    for name in answers[place]:
        for wrong in (None, 5, [5], {"type": "word"}):
            if which == "rendered" and name not in ("prompt", "generation_prompt"):
                continue
            changed = json.dumps({**answers[place], name: wrong})
            template_answers = [*honest[:place], result(changed), *honest[place + 1 :]]
            with pytest.raises(ChatTemplateAborted, match=name):
                taken_over(*template_answers).apply(HELLO)


def test_a_format_that_is_no_parser(taken_over, answers):
    description, rendered, applied = answers
    for arena in ("nonsense", "{}", '{"parsers": [], "rules": {"a": 7}, "root": 0}'):
        changed = {**applied, "parser": {**applied["parser"], "parser": arena}}
        template = taken_over(
            *(result(json.dumps(one)) for one in (description, rendered, changed))
        )
        with pytest.raises(ChatTemplateAborted, match="parser"):
            template.apply(HELLO)
