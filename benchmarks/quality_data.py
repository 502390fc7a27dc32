"""The tasks of quality.py on public data, read from the files of a folder, wherever they are in it.

test.jsonl                   GSM8K                          (openai/grade-school-math)
test.csv                     banking77, ten intents of it   (PolyAI-LDN/task-specific-datasets)
restaurant8k/test.json       spans in requests for tables   (the same repository)
dev-v*.json                  SQuAD, of either version       (rajpurkar/SQuAD-explorer)
BFCL_v*_multiple.json        one of several functions       (ShishirPatil/gorilla)
possible_answer/…            and what is right of it
"""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import dspy
from quality_tasks import N_DEMOS, Call, Reading, Rows, Task, rows_of, same

LONGEST_TEXT = 700  # characters: five demonstrations have to fit, too


def from_folder(folder: Path, count: int) -> list[Task]:
    """The tasks whose files are in a folder.

    :param count: how many of their examples are asked.
    """
    readers: dict[str, Callable[[Path], Task]] = {
        "test.jsonl": gsm8k,
        "test.csv": banking77,
        "restaurant8k/test.json": restaurant8k,
        "dev-v*.json": squad,
        "BFCL_v*_multiple.json": functions,
    }
    tasks = []
    for name, read in readers.items():
        found = [path for path in sorted(folder.rglob(name)) if path.parent.name != ANSWERS]
        if found:
            task = read(found[0])
            del task.rows[N_DEMOS + count :]
            tasks.append(task)
    return tasks


def gsm8k(path: Path) -> Task:
    """Sums in words."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        found = json.loads(line)
        thoughts, _, answer = found["answer"].partition("####")
        rows.append(
            {
                "question": found["question"],
                "reasoning": re.sub("<<.*?>>", "", thoughts).strip(),
                "answer": int(answer.replace(",", "")),
            }
        )
    return Task("gsm8k", dspy.Signature("question -> answer: int"), rows, dspy.ChainOfThought)


def banking77(path: Path) -> Task:
    """Ten intents of a bank's customers, in turn."""
    with path.open(encoding="utf-8", newline="") as file:
        found = [(row["text"], row["category"]) for row in csv.DictReader(file)]
    intents = list(dict.fromkeys(intent for _, intent in found))[:10]
    by_intent = [[text for text, of in found if of == intent] for intent in intents]
    intent: Any = Literal.__getitem__(tuple(intents))
    signature = dspy.Signature(
        {"query": (str, dspy.InputField()), "intent": (intent, dspy.OutputField())},
        "Choose the intent of the bank customer's query.",
    )
    mixed = [
        (text, intent)
        for texts in zip(*by_intent, strict=False)
        for text, intent in zip(texts, intents, strict=True)
    ]
    return Task("banking77", signature, rows_of("query intent", mixed))


def restaurant8k(path: Path) -> Task:
    """The day and the name in what people say who book a table."""
    slots = ("date", "first_name", "last_name")
    found = []
    for one in json.loads(path.read_text(encoding="utf-8")):
        text = one["userInput"]["text"]
        spans = {label["slot"]: label["valueSpan"] for label in one.get("labels", [])}
        if {*spans} == {*slots}:
            values = [text[spans[s].get("startIndex", 0) : spans[s]["endIndex"]] for s in slots]
            found.append((text, *values))
    signature = dspy.Signature(
        "request -> date, first_name, last_name",
        "Extract the date and the guest's name from the request, in its own words.",
    )
    return Task("restaurant8k", signature, rows_of("request date first_name last_name", found))


def squad(path: Path) -> Task:
    """A question about each short paragraph, of those that it answers."""
    articles = json.loads(path.read_text(encoding="utf-8"))["data"]
    rows: Rows = []
    for paragraphs in itertools.zip_longest(*(article["paragraphs"] for article in articles)):
        for paragraph in paragraphs:
            asked = [one for one in (paragraph or {"qas": []})["qas"] if one["answers"]]
            if not asked or len(paragraph["context"]) > LONGEST_TEXT:
                continue
            answers = [answer["text"] for answer in asked[0]["answers"]]
            rows.append(
                {
                    "text": paragraph["context"],
                    "question": asked[0]["question"],
                    "answer": answers[0],
                    "accepts": {"answer": partial(is_one_of, answers)},
                }
            )
    return Task("squad", Reading, rows)


def is_one_of(answers: list[str], given: Any) -> bool:
    """Whether a value is one of several right ones."""
    return any(same(answer, given) for answer in answers)


ANSWERS = "possible_answer"
TYPES = {"dict": "object", "float": "number", "tuple": "array"}


def functions(path: Path) -> Task:
    """Which of several functions to call, and with what."""
    told = (path.parent / ANSWERS / path.name).read_text(encoding="utf-8").splitlines()
    right = {one["id"]: one["ground_truth"][0] for one in map(json.loads, told)}
    rows: Rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        asked = json.loads(line)
        [(name, arguments)] = right[asked["id"]].items()
        first = {key: values[0] for key, values in arguments.items() if "" not in values}
        call = {"name": name, "args": first}
        rows.append(
            {
                "question": asked["question"][0][0]["content"],
                "tools": [tool_of(function) for function in asked["function"]],
                "calls": dspy.ToolCalls.from_dict_list([call]),
                "accepts": {"calls": partial(is_call, name, arguments)},
            }
        )
    return Task("functions", Call, rows)


def tool_of(function: dict[str, Any]) -> dspy.Tool:
    """A function as DSPy has it; nobody calls it."""
    arguments = {
        name: schema_of(schema) for name, schema in function["parameters"]["properties"].items()
    }
    return dspy.Tool(
        lambda **_: None, name=function["name"], desc=function["description"], args=arguments
    )


def schema_of(described: Any) -> Any:
    """A JSON schema in place of Python's names of types."""
    if isinstance(described, list):
        return [schema_of(one) for one in described]
    if not isinstance(described, dict):
        return described
    made = {key: schema_of(value) for key, value in described.items()}
    kind = made.get("type")
    if isinstance(kind, str):
        made["type"] = TYPES.get(kind, kind)
        if kind == "any":
            del made["type"]
    made.pop("optional", None)
    return made


def is_call(name: str, arguments: dict[str, list[Any]], given: Any) -> bool:
    """Whether there is one call, of this function, each argument with one of its right values."""
    calls = given.tool_calls if isinstance(given, dspy.ToolCalls) else []
    if len(calls) != 1 or calls[0].name != name or not {*calls[0].args} <= {*arguments}:
        return False
    return all(
        any(_equal(value, calls[0].args.get(key, "")) for value in values)
        for key, values in arguments.items()
    )


def _equal(wanted: Any, given: Any) -> bool:
    if isinstance(wanted, str) and isinstance(given, str):
        return "".join(wanted.lower().split()) == "".join(given.lower().split())
    return bool(wanted == given)
