"""What a model wrote, taken apart: whole, in part, and what does not fit."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading

import pytest
from chats import TOOL, TOOLS_AND_THINKING
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllama import (
    ChatMessage,
    ChatMessageDiff,
    ChatParseError,
    ChatParser,
    ChatTemplate,
    ChatToolCall,
    NativeError,
)

CONVERSATION = [{"role": "user", "content": "What is 1 + 2?"}]
THOUGHT = "<think>\nAdd them.\n</think>\n\n"
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'


@pytest.fixture(scope="module")
def rendered():
    return ChatTemplate(source=TOOLS_AND_THINKING).apply(CONVERSATION, tools=[TOOL])


@pytest.fixture(scope="module")
def parser(rendered):
    return rendered.parser


def test_content(parser):
    assert parser.parse("Three.") == ChatMessage(content="Three.")


def test_an_empty_answer(parser):
    assert parser.parse("") == ChatMessage()
    assert parser.parse("", partial=True) == ChatMessage()


def test_reasoning_is_taken_out(parser):
    message = parser.parse(f"{THOUGHT}Three.")
    assert message.content == "Three."
    assert message.reasoning_content.strip() == "Add them."


def test_reasoning_stays_when_told_so():
    template = ChatTemplate(source=TOOLS_AND_THINKING)
    parser = template.apply(CONVERSATION, reasoning_format="none").parser
    assert parser.parse(f"{THOUGHT}Three.") == ChatMessage(content=f"{THOUGHT}Three.")


def test_a_tool_call(parser):
    message = parser.parse(f"{THOUGHT}Let me see.\n{CALL}")
    assert message.tool_calls == (ChatToolCall("add", '{"a": 1, "b": 2}'),)
    assert message.content.strip() == "Let me see."


def test_two_tool_calls(parser):
    other = CALL.replace("1", "7")
    assert [call.arguments for call in parser.parse(f"{CALL}\n{other}").tool_calls] == [
        '{"a": 1, "b": 2}',
        '{"a": 7, "b": 2}',
    ]


def test_a_call_is_text_where_none_may_be_made():
    template = ChatTemplate(source=TOOLS_AND_THINKING)
    parser = template.apply(CONVERSATION, tools=[TOOL], tool_choice="none").parser
    assert parser.parse(CALL) == ChatMessage(content=CALL)


def test_parts_of_a_stream(parser):
    """What may still become a tag is held back."""
    assert parser.parse("Let me <tool", partial=True).content.strip() == "Let me"
    assert parser.parse("Let me <toolbox>", partial=True).content == "Let me <toolbox>"
    begun = parser.parse('<tool_call>\n{"name": "add", "arguments": {"a": 1', partial=True)
    assert [(call.name, call.arguments) for call in begun.tool_calls] == [("add", '{"a": 1')]
    with pytest.raises(ChatParseError):
        parser.parse('<tool_call>\n{"name": "add", "argu!')


def test_what_a_step_adds():
    before = ChatMessage("Let", "So", (ChatToolCall("add", '{"a"', "7"),))
    after = ChatMessage(
        "Let me", "So", (ChatToolCall("add", '{"a": 1}', "7"), ChatToolCall("b", "{"))
    )
    assert after.compute_diffs(before) == (
        ChatMessageDiff("", " me", None, None),
        ChatMessageDiff("", "", 0, ChatToolCall("", ": 1}")),
        ChatMessageDiff("", "", 1, ChatToolCall("b", "{")),
    )
    assert after.compute_diffs(after) == ()
    assert ChatMessage("", "Hm").compute_diffs(ChatMessage()) == (
        ChatMessageDiff("Hm", "", None, None),
    )


@pytest.mark.parametrize(
    "previous",
    [
        ChatMessage("Other"),
        ChatMessage("", "Other"),
        ChatMessage("", "", (ChatToolCall("sub", "{}"), ChatToolCall("sub", "{}"))),
        ChatMessage("Let", "", (ChatToolCall("sub", "{}"),)),
    ],
)
def test_a_message_that_is_no_earlier_part(previous):
    message = ChatMessage("Let me", "Hm", (ChatToolCall("add", "{}"),))
    with pytest.raises(ChatParseError, match="previous message"):
        message.compute_diffs(previous)


@pytest.mark.parametrize("previous", [None, "Let", {"content": "Let"}])
def test_something_that_is_no_message(previous):
    with pytest.raises(TypeError, match="previous must be"):
        ChatMessage("Let me").compute_diffs(previous)


def test_bytes_may_end_within_a_character(parser):
    data = "Zürich 🦙".encode()
    assert parser.parse(data).content == "Zürich 🦙"
    assert parser.parse(data[:2], partial=True).content == "Z"
    assert parser.parse(data[:-1], partial=True).content == "Zürich "
    assert parser.parse(b"Z\xff\xferich").content == "Z\ufffd\ufffdrich"


@pytest.mark.parametrize("text", ["a\0b", "\0", "🦙\u202e", '{"a": [', "</think>", "\\", '"'])
def test_text_is_taken_as_it_is(parser, text):
    assert parser.parse(text).content == text


@pytest.mark.parametrize("text", [None, 3, ["a"], object()])
def test_text_of_another_type(parser, text):
    with pytest.raises(TypeError, match="text must be"):
        parser.parse(text)


def test_a_lone_surrogate(parser):
    with pytest.raises(ChatParseError, match="surrogate at index 1"):
        parser.parse("a\ud800")


@pytest.mark.parametrize("brackets", ["[]", "{}"])
@pytest.mark.parametrize("partial", [True, False])
def test_text_that_nests_too_deep(parser, brackets, partial):
    opening, closing = brackets
    for depth in (201, 1_000_000):
        with pytest.raises(ChatParseError, match="deeper than 200"):
            parser.parse(CALL.replace("1", opening * depth + closing * depth), partial=partial)
    assert parser.parse((opening + closing) * 100_000).content


@pytest.mark.parametrize("partial", [True, False])
def test_brackets_that_strings_close_nest_all_the_same(parser, partial):
    """A million bytes of stack for each 1,000 of them."""
    value = '{"}": ' * 20_000 + "1" + "}" * 20_000
    message = parser.parse(CALL.replace("1", value), partial=partial)
    assert message.tool_calls[0].arguments.count("{") == 20_001


def test_terminal_colours_do_not_nest(parser):
    text = "\x1b[31mred\x1b[0m " * 1_000
    assert parser.parse(text).content == text


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.sampled_from([*THOUGHT.split("\n"), *CALL.split('"'), "\n", "{", "}", "[", '"', "add"]),
        max_size=30,
    ),
    st.booleans(),
)
def test_any_text_is_a_message_or_refused(rendered, pieces, partial):
    try:
        message = rendered.parser.parse("".join(pieces), partial=partial)
    except ChatParseError:
        return
    assert isinstance(message, ChatMessage)


def test_a_parser_outlives_its_template(tiny):
    parser = ChatTemplate(tiny).apply(CONVERSATION).parser
    gc.collect()
    assert parser.parse("Three.").content == "Three."


def test_threads_may_share_a_parser(parser):
    expected = parser.parse(THOUGHT + CALL)
    different = []

    def work():
        different.extend(
            message for _ in range(50) if (message := parser.parse(THOUGHT + CALL)) != expected
        )

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not different


def test_parse_errors_are_value_errors(parser):
    with pytest.raises(ValueError, match="format"):
        parser.parse('<tool_call>\n{"name": "sub"')


def parser_of(parts, root=0, rules=None):
    """A parser with these parts in place of those of its format."""
    rendered = ChatTemplate(source=TOOLS_AND_THINKING)
    given = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ChatParser, "__init__", lambda _, params: given.append(json.loads(params)))
        rendered.apply(CONVERSATION, tools=[TOOL])
    arena = {"parsers": parts, "rules": rules or {}, "root": root}
    return ChatParser(json.dumps({**given[0], "parser": json.dumps(arena)}))


OPENING = {"type": "literal", "literal": "{}"}
ANY = {"type": "any"}
ENDLESS = {
    "a part of itself": [{"type": "sequence", "children": [0]}],
    "a rule of itself": [{"type": "ref", "name": "rule"}],
    "once a character": [{"type": "sequence", "children": [1, 0]}, ANY],
    "behind what need not be there": [
        {"type": "sequence", "children": [1, 0]},
        {"type": "repetition", "child": 2, "min_count": 0, "max_count": 1},
        OPENING,
    ],
    "behind one of two": [
        {"type": "sequence", "children": [1, 0]},
        {"type": "choice", "children": [2, 3]},
        OPENING,
        ANY,
    ],
    "behind what is only looked at": [
        {"type": "sequence", "children": [1, 0]},
        {"type": "and", "child": 2},
        OPENING,
    ],
    "behind a child that is none": [
        {"type": "sequence", "children": [1, 0]},
        {**ANY, "child": 2, "children": [2]},
        OPENING,
    ],
    "before a bracket": [{"type": "sequence", "children": [0, 1]}, OPENING],
}
"""Parsers whose recursion nothing bounds, as a process that was taken over might send them."""


@pytest.mark.parametrize("parts", ENDLESS.values(), ids=list(ENDLESS))
def test_a_parser_that_calls_itself_without_end_is_refused(parts):
    with pytest.raises(NativeError, match="calls itself without end"):
        parser_of(parts, rules={"rule": 0})


def test_a_parser_with_a_part_that_is_not_there_is_refused():
    with pytest.raises(NativeError, match="no part 7"):
        parser_of([{"type": "sequence", "children": [7]}])


def test_a_parser_that_nests_too_deep_is_refused():
    with pytest.raises(NativeError, match="nests deeper"):
        parser_of([{**ANY, "more": json.loads("[" * 200 + "]" * 200)}])


def test_a_parser_that_comes_to_itself_behind_brackets_has_the_stack_for_them():
    parts = [{"type": "tag", "tag": "x", "child": index + 1} for index in range(40)]
    parts += [{"type": "sequence", "children": [41, 0]}, OPENING]
    root = len(parts)
    parts += [
        {"type": "sequence", "children": [root + 1, 0]},
        {"type": "until", "delimiters": ["{"]},
    ]
    parser = parser_of(parts, root)
    with pytest.raises(ChatParseError, match="does not match"):
        parser.parse("{}" * 2000 + "!")
    with pytest.raises(ChatParseError, match="bytes of stack"):
        parser.parse("{}" * 30000 + "!")


_SHORT = """
import json, resource, sys
import pyllama
from pyllama._native._binding import lib

def message(count):
    calls = [{"name": "f", "arguments": "{}", "id": "0"}] * count
    return json.dumps({"content": "", "reasoning_content": "", "tool_calls": calls}).encode()

few, many = message(0), message(20_000)
lib.guarded_chat_compute_diffs(few, few)
with open("/proc/self/statm") as file:
    mapped = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + int(sys.argv[1]),) * 2)
failed = not lib.guarded_chat_compute_diffs(many, many)
assert failed and lib.pyllama_caught() == lib.PYLLAMA_CAUGHT_OUT_OF_MEMORY
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits what a process maps")
@pytest.mark.parametrize("megabytes", [12, 15, 18, 20])
def test_no_memory_to_free_an_object_is_an_error(megabytes):
    """The JSON library takes some to free an object, and would end the process."""
    code = [sys.executable, "-c", _SHORT, str(megabytes << 20)]
    ended = subprocess.run(code, timeout=60, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
