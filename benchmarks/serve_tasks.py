"""What serve.py has every engine answer: DSPy programs and conversations of support tickets.

A task is a function that takes an lm and a number of threads, and returns how many answers could
not be parsed. Prompts are the same for all engines; answers are greedy, so they nearly are.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import dspy
from dspy.adapters import Adapter

SHORT_ANSWER, LONG_ANSWER = 96, 48
TURN = 40

PLACES = ("kitchen", "second floor", "warehouse", "front desk", "car park", "server room")
THINGS = ("printer", "coffee machine", "badge reader", "projector", "lift", "heating", "laptop")
TROUBLES = (
    "does not start and shows a red light",
    "makes a loud noise every few minutes",
    "stopped working after the power cut last night",
    "asks for a password that nobody here knows",
    "leaks a little water and smells of smoke",
    "is very slow since the update on Monday",
)
SUBJECTS = (
    "a river that runs through an old town", "how bread is baked", "the rules of chess",
    "a storm at sea", "why leaves turn red", "a letter to a friend abroad", "the history of glass",
    "how a bicycle stays upright", "a market on a Sunday morning", "the moons of Jupiter",
    "what bees do in winter", "a train that is late", "how paper is made", "an empty theatre",
    "the smell of rain", "a lighthouse keeper",
)  # fmt: skip


class Triage(dspy.Signature):
    """Read a ticket that an employee wrote to the support desk of a company. Name the thing that is
    broken in one or two words, and say how urgent it is to mend it."""

    ticket: str = dspy.InputField(desc="what the employee wrote")
    thing: str = dspy.OutputField(desc="what is broken")
    urgency: Literal["low", "medium", "high"] = dspy.OutputField()


DEMOS = (
    ("The printer on the second floor does not start and shows a red light.", "printer", "medium"),
    ("Hi, the lift makes a loud noise every few minutes, I am afraid of it.", "lift", "high"),
    ("The badge reader asks for a password that nobody here knows.", "badge reader", "high"),
    ("My laptop is very slow since the update, but I can still work.", "laptop", "low"),
    ("The projector leaks a little water and it smells of smoke here.", "projector", "high"),
)


def tickets(count: int) -> list[str]:
    """Different short tickets, the same in every run."""
    draw = random.Random(0)
    found: dict[str, None] = {}
    while len(found) < count:
        thing, place, trouble = draw.choice(THINGS), draw.choice(PLACES), draw.choice(TROUBLES)
        found[f"The {thing} near the {place} {trouble}. Room {draw.randint(100, 999)}."] = None
    return list(found)


def program() -> dspy.Predict:
    """A Predict with five demos."""
    predict = dspy.Predict(Triage)
    names = ("ticket", "thing", "urgency")
    predict.demos = [
        dspy.Example(**dict(zip(names, demo, strict=True))).with_inputs("ticket") for demo in DEMOS
    ]
    return predict


def unrelated(count: int) -> list[str]:
    """Prompts that have nothing in common but the chat template."""
    draw = random.Random(1)
    prompts = []
    for index in range(count):
        words = [draw.choice(SUBJECTS) for _ in range(8)]
        prompts.append(f"{words[0].capitalize()} ({index}): write of " + ", and of ".join(words))
    return prompts


def long_prompt() -> str:
    """About 1,500 tokens."""
    return "Sum up these tickets.\n" + "\n".join(tickets(64))


def predict_task(adapter: Adapter) -> Callable[[dspy.LM, int, int], int]:
    """The program, on as many tickets as asked for."""

    def run(lm: dspy.LM, threads: int, count: int) -> int:
        predict = program()
        failures: list[str] = []

        def answer(ticket: str) -> None:
            try:
                with dspy.context(lm=lm, adapter=adapter):
                    predict(ticket=ticket)
            except dspy.utils.exceptions.AdapterParseError:
                failures.append(ticket)

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(answer, tickets(count)))
        return len(failures)

    return run


def chat_task(lm: dspy.LM, _threads: int, count: int) -> int:
    """One conversation that grows."""
    messages: list[dict[str, Any]] = []
    for ticket in tickets(count):
        messages.append({"role": "user", "content": ticket + " What shall I do?"})
        (answer,) = ask(lm, messages, TURN)
        messages.append({"role": "assistant", "content": answer})
    return 0


def unrelated_task(lm: dspy.LM, threads: int, count: int) -> int:
    """Prompts that have nothing in common."""

    def answer(prompt: str) -> None:
        ask(lm, [{"role": "user", "content": prompt}], LONG_ANSWER)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(answer, unrelated(count)))
    return 0


def ask(lm: dspy.LM, messages: list[dict[str, Any]], max_tokens: int) -> list[str]:
    """One call of an lm."""
    return [
        answer if isinstance(answer, str) else answer["text"]
        for answer in lm(messages=messages, max_tokens=max_tokens)
    ]
