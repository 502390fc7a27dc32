"""One peer at one task, in a process of its own: a JSON object on stdout. See serve.py."""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import dspy
from dspy.adapters import ChatAdapter, JSONAdapter
from serve_peers import PEERS, Messages, Options, Peer, Pyllama
from serve_tasks import (
    LONG_ANSWER,
    SHORT_ANSWER,
    TURN,
    Triage,
    ask,
    chat_task,
    long_prompt,
    predict_task,
    program,
    tickets,
    unrelated,
    unrelated_task,
)
from sigterm import exit_at_sigterm

N_STREAMED = 16
"""Requests whose first token is timed, after those of the task."""

N_PAIRS = 3
"""Pairs of a long prompt and a short one."""

Figures = dict[str, Any]


def main() -> None:
    exit_at_sigterm()
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", choices=PEERS, required=True)
    parser.add_argument("--task", choices=[*TASKS, "reading", "pair"], required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--server", default="")
    parser.add_argument("--example", default="")
    parser.add_argument("--cores", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--parallel", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--pause", type=float, required=True)
    parser.add_argument("--backend")
    given = parser.parse_args()
    peer = PEERS[given.peer](
        Options(
            *(given.model, given.cores, given.parallel),
            *(given.server, given.example, given.backend),
        )
    )
    try:
        warm_up(peer, given.threads)
        if given.task == "pair":
            figures = pair(peer)
        elif given.task == "reading":
            figures = reading(peer, given.count, given.pause)
        else:
            figures = throughput(peer, given)
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        figures["memory"] = own * (1 if sys.platform == "darwin" else 1024) + peer.peak_memory()
    finally:
        peer.close()
    print(json.dumps(figures))


def warm_up(peer: Peer, threads: int) -> None:
    """Some answers, twice, as many at once as the task asks for.

    What is made or tried out when first needed is there then, for each peer alike.
    """
    for word in ("Snow", "Grass"):
        asked = [user(f"{word} {n} " + "is seen from afar; " * 20) for n in range(threads)]
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda messages: ask(peer.lm, messages, 8), asked))


def throughput(peer: Peer, given: argparse.Namespace) -> Figures:
    """Requests and tokens in a time, and the time to the first token of further requests."""
    task, count = TASKS[given.task], given.count
    if peer.adapter is not None:
        task = predict_task(peer.adapter)
    lm = peer.lm.copy(max_tokens=SHORT_ANSWER)
    lm.history = []
    begin, cpu = time.perf_counter(), cpu_seconds(peer)
    failures = task(lm, given.threads, count)
    seconds, cpu = time.perf_counter() - begin, cpu_seconds(peer) - cpu
    usages = [entry["usage"] for entry in lm.history]
    figures: Figures = {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "requests": len(usages),
        "failures": failures,
        "prompt_tokens": sum(usage["prompt_tokens"] for usage in usages),
        "output_tokens": sum(usage["completion_tokens"] for usage in usages),
    }
    if isinstance(peer, Pyllama):
        prompts = [
            peer.loaded.tokenize(peer.loaded.render(entry["messages"]).prompt)
            for entry in lm.history
        ]
        figures["unique_tokens"] = n_unique(prompts)
        figures["shared_tokens"] = n_common(min(prompts), max(prompts))
    further = FURTHER[given.task](peer, count) if given.task in FURTHER else []
    if further:
        with ThreadPoolExecutor(given.threads) as pool:
            figures["first_tokens"] = sorted(pool.map(lambda m: first_token(peer, m), further))
    return figures


def pair(peer: Peer) -> Figures:
    """A short prompt that comes while a long one is being computed."""
    short, long = [], []
    for index in range(N_PAIRS):
        asked = user(f"List {index}. " + long_prompt())
        with ThreadPoolExecutor(1) as other:
            waiting = other.submit(first_token, peer, asked)
            time.sleep(0.3)
            short.append(first_token(peer, user(f"Is {index} a prime?")))
            long.append(waiting.result())
    return {"first_short": statistics.median(short), "first_long": statistics.median(long)}


def reading(peer: Peer, count: int, pause: float) -> Figures:
    """A conversation with somebody who reads each answer before asking on.

    Args:
        pause: seconds between an answer and the next question.
    """
    messages: Messages = []
    first_tokens: list[float] = []
    cpu = cpu_seconds(peer)
    for ticket in tickets(count):
        messages += user(f"{ticket} What shall I do?")
        begin, answer = time.perf_counter(), ""
        for piece in peer.stream(messages, TURN):
            if piece and not answer:
                first_tokens.append(time.perf_counter() - begin)
            answer += piece
        messages.append({"role": "assistant", "content": answer})
        time.sleep(pause)
    return {"first_tokens": first_tokens, "cpu_seconds": cpu_seconds(peer) - cpu}


def cpu_seconds(peer: Peer) -> float:
    """Processor time so far, of this process and of the peer's own."""
    return time.process_time() + peer.cpu_seconds()


def first_token(peer: Peer, messages: Messages) -> float:
    """Seconds to the first piece of text; the rest is read too."""
    begin = time.perf_counter()
    seconds = 0.0
    for piece in peer.stream(messages, LONG_ANSWER):
        if piece and not seconds:
            seconds = time.perf_counter() - begin
    return seconds


def n_unique(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that have to be computed when nothing is computed twice: the nodes of a trie."""
    ordered = sorted(prompts)
    repeated = sum(n_common(one, other) for one, other in pairwise(ordered))
    return sum(map(len, ordered)) - repeated


def n_common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two prompts begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def further_prompts(_peer: Peer, _count: int) -> list[Messages]:
    """Prompts that have nothing in common with those before."""
    return [user(f"Again. {text}") for text in unrelated(N_STREAMED)]


def user(text: str) -> Messages:
    """A conversation of one message."""
    return [{"role": "user", "content": text}]


def further_tickets(peer: Peer, count: int) -> list[Messages]:
    """What the program would ask about tickets that it has not seen."""
    demos, adapter = program().demos, peer.adapter or ChatAdapter()
    return [
        adapter.format(Triage, demos, {"ticket": ticket})
        for ticket in tickets(count + N_STREAMED)[count:]
    ]


TASKS = {
    "predict": predict_task(ChatAdapter(use_json_adapter_fallback=False)),
    "json": predict_task(JSONAdapter()),
    "chat": chat_task,
    "unrelated": unrelated_task,
}

FURTHER = {
    "predict": further_tickets,
    "unrelated": further_prompts,
}

if __name__ == "__main__":
    dspy.configure(max_history_size=100_000)
    main()
