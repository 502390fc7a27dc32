"""DSPy's cache, candidates and rollouts: which answers are one, and which are others."""

from __future__ import annotations

import asyncio

import dspy
import pytest
from engines import lm_of
from fake_generator import fake_model

from adapter import errors
from adapter.engine.config import LlamaCppConfig
from adapter.signatures.llama_cpp_adapter import LlamaCppAdapter


def test_a_repeated_call_is_answered_by_the_cache_and_another_rollout_is_not():
    model = fake_model(lambda _, request: str(request.seed))
    lm = lm_of(model)
    first = lm("Hello")
    assert lm("Hello") == first
    second = lm("Hello", rollout_id=1)
    assert second != first
    assert lm("Hello", rollout_id=1) == second
    assert len(model.generator.requests) == 2


def test_no_two_models_or_configs_answer_for_each_other():
    def named(answer, **changes):
        return fake_model(answer, **changes)

    lms = [
        lm_of(named("base")),
        lm_of(named("other weights", fingerprint="ff00")),
        lm_of(named("other name", name="other")),
        lm_of(named("loaded shorter", context_length=2048)),
        lm_of(named("computed elsewhere", computation=("NVIDIA H100", "threads=1"))),
        lm_of(named("not reproducible", computation=("threads=1", "reproducible=False"))),
        *(
            lm_of(named(" ".join(setting)), **setting)
            for setting in (
                {"context_length": 2048},
                {"max_tokens": 33},
                {"temperature": 0.1},
                {"top_p": 0.5},
                {"top_k": 3},
                {"min_p": 0.3},
                {"repeat_penalty": 1.5},
                {"seed": 1},
                {"stop": ("x y z",)},
                {"token_budget_limit": 10_000},
                {"execution": "isolated"},
            )
        ),
    ]
    for _ in range(2):
        answers = [lm("Hello", temperature=0.5, max_tokens=50)[0] for lm in lms]
        assert answers == [lm.engine.loaded.generator.script("", None) for lm in lms]
    assert all(len(lm.engine.loaded.generator.requests) == 1 for lm in lms)
    assert len({lm.model for lm in lms}) == len(lms)


@pytest.mark.parametrize("name", ["o1", "o3-mini", "gpt-5-nano", "openai"])
def test_a_models_name_is_never_taken_for_openais(name):
    lm = lm_of(fake_model("x", name=name), max_tokens=10, temperature=0.5)
    assert lm.kwargs["max_tokens"] == 10
    assert type(lm.provider) is dspy.Provider


def seeds_of(call, lm, **settings):
    """The seeds that the candidates of a call were sampled with."""
    if call == "acall":
        return asyncio.run(lm.acall("Hello", **settings))
    return lm("Hello", **settings)


@pytest.mark.parametrize("call", ["call", "acall"])
def test_candidates_and_rollouts_have_seeds_of_their_own_that_stay(call):
    """Without a seed they are drawn; from a seed they follow."""
    model = fake_model(lambda _, request: str(request.seed))

    def asked(**settings):
        lm = lm_of(model, enable_cache=False, seed=settings.pop("seed", 7))
        return seeds_of(call, lm, **settings)

    assert asked() == ["7"]
    assert len({*asked(seed=None, n=5), *asked(seed=None, n=5)}) == 10
    candidates = asked(n=5)
    assert candidates[0] == "7"
    rollouts = [asked(rollout_id=rollout)[0] for rollout in range(5)]
    both = [seed for rollout in range(5) for seed in asked(n=3, rollout_id=rollout)]
    assert len({*candidates, *both}) == 5 + 15
    assert both[::3] == rollouts
    assert asked(n=5) == candidates
    assert [asked(rollout_id=rollout)[0] for rollout in range(5)] == rollouts
    assert asked(seed=8, n=5) != candidates
    # Each is reproduced by the seed that its response tells.
    assert [asked(seed=int(seed))[0] for seed in both] == both


def test_a_candidate_that_is_tried_again_keeps_its_seed(monkeypatch):
    failures = iter(
        [None, errors.QueueFullError(1, 0.0), errors.QueueFullError(1, 0.0), None, None]
    )

    def script(_, request):
        if error := next(failures):
            raise error
        return str(request.seed)

    monkeypatch.setattr("time.sleep", lambda _: None)
    tried_again = lm_of(fake_model(script), seed=7)("Hello", n=3)
    assert tried_again == lm_of(fake_model(lambda _, request: str(request.seed)), seed=7)(
        "Hello", n=3
    )


def test_streamed_candidates_have_seeds_of_their_own():
    model = fake_model(lambda _, request: f"[[ ## answer ## ]]\n{request.seed}")
    lm = lm_of(model, seed=7, enable_cache=False)
    program = dspy.streamify(dspy.Predict("question -> answer", n=3))

    async def main():
        with dspy.context(lm=lm):
            return [chunk async for chunk in program(question="Hello")]

    asyncio.run(main())
    assert len({request.seed for request in model.generator.requests}) == 3


def test_best_of_n_has_different_candidates_with_a_fixed_seed():
    model = fake_model(lambda _, request: f"answer: {request.seed}")
    adapter = LlamaCppAdapter.from_loaded_model(model, LlamaCppConfig(model.name, seed=1))
    runs = []
    for _ in range(2):
        seen = []
        best = dspy.BestOfN(
            module=dspy.Predict("question -> answer"),
            N=4,
            reward_fn=lambda _, prediction, seen=seen: seen.append(prediction.answer) or 0.0,
            threshold=1.0,
        )
        with dspy.context(lm=adapter.lm, adapter=adapter):
            best(question="Hello")
        runs.append(seen)
    assert len(set(runs[0])) == 4
    assert runs[0] == runs[1]


def test_the_tokens_of_all_candidates_are_counted():
    lm = lm_of(fake_model("four"))
    lm("Hello", n=3)
    assert lm.history[-1]["usage"]["completion_tokens"] == 3 * len("four")
