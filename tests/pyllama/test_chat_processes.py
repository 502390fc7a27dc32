"""A template's threads wait for each other, or get more processes."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import pytest

from pyllama import ChatProcessError, ChatTemplate, chat_processes
from pyllama.chat_process import ChatProcess

SLOW = "{% for i in range(500) %}{% endfor %}{{ messages[0].content }}"
N_THREADS = 8


def template_on(monkeypatch, n_cores: int) -> ChatTemplate:
    monkeypatch.setattr(chat_processes, "cpu_math_cores", lambda: n_cores)
    return ChatTemplate(source=SLOW, isolated=True)


def answer(template: ChatTemplate, number: int) -> bool:
    return template.apply([{"role": "user", "content": str(number)}]).prompt == str(number)


def answers(template: ChatTemplate, n_threads: int = N_THREADS) -> bool:
    """Whether each of many calls of threads has its own text."""
    with ThreadPoolExecutor(n_threads) as threads:
        return all(threads.map(lambda number: answer(template, number), range(8 * n_threads)))


def kept_busy(template: ChatTemplate, n_processes: int) -> None:
    """Have threads call it until it has so many processes."""
    for _ in range(30):
        assert answers(template)
        if len(processes_of(template)) == n_processes:
            return
    raise AssertionError(f"{len(processes_of(template))} processes instead of {n_processes}")


def processes_of(template: ChatTemplate) -> list[ChatProcess]:
    return template._engine._template._processes


@pytest.mark.parametrize(("n_cores", "most"), [(1, 1), (7, 1), (8, 2), (16, 4), (128, 4)])
def test_threads_that_wait_start_more_within_a_limit(monkeypatch, n_cores, most):
    template = template_on(monkeypatch, n_cores)
    assert len(processes_of(template)) == 1
    kept_busy(template, most)
    assert answers(template)
    assert answers(template)
    assert len(processes_of(template)) == most


def test_one_thread_starts_no_other(monkeypatch):
    template = template_on(monkeypatch, 16)
    assert answers(template, n_threads=1)
    assert len(processes_of(template)) == 1


def test_all_end_with_the_template(monkeypatch):
    template = template_on(monkeypatch, 16)
    kept_busy(template, 4)
    started = [process._process for process in processes_of(template)]
    assert [process.poll() for process in started] == [None] * 4
    del template
    gc.collect()
    assert None not in [process.returncode for process in started]


@pytest.mark.parametrize("error", [ChatProcessError("no process"), MemoryError()])
def test_one_that_cannot_start_costs_no_answer(monkeypatch, error):
    template, tried = template_on(monkeypatch, 16), []

    def refuse(*arguments):
        tried.append(arguments)
        raise error

    monkeypatch.setattr(chat_processes, "ChatProcess", refuse)
    assert answers(template)
    assert len(tried) == 1
    assert len(processes_of(template)) == 1


def test_what_ends_one_is_the_error_of_its_call_alone(monkeypatch):
    template = template_on(monkeypatch, 16)
    kept_busy(template, 4)
    for process in processes_of(template):
        process._process.kill()
        process._process.wait()
    assert answers(template)
    assert len(processes_of(template)) == 4
