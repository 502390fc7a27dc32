from __future__ import annotations

import asyncio
import contextvars
import re
import threading

import dspy
import pytest
from dspy.utils.dummies import DummyLM
from dspy.utils.exceptions import AdapterParseError, ContextWindowExceededError
from fake_generator import fake_model

from adapter.config import LlamaCppConfig
from adapter.engine import LlamaCppEngine
from adapter.errors import ConfigurationError
from adapter.llama_cpp_adapter import LlamaCppAdapter

QA = "question -> answer"


def adapter_of(model, *, route_other_lms=None, use_json_adapter_fallback=True, **settings):
    return LlamaCppAdapter.from_loaded_model(
        model,
        LlamaCppConfig(model.name, **settings),
        route_other_lms=route_other_lms,
        use_json_adapter_fallback=use_json_adapter_fallback,
    )


def echo(prompt, request):
    """Answer with the last question asked and the seed it was asked with."""
    question = re.findall(r"question: (.*)", prompt)[-1]
    return f"answer: {question} / {request.seed}"


@pytest.fixture
def configured():
    """Return a function that makes an adapter and its lm DSPy's own for the test."""

    def configure(model, lm=None, **settings):
        adapter = adapter_of(model, **settings)
        context = dspy.context(lm=lm or adapter.lm, adapter=adapter)
        context.__enter__()
        contexts.append(context)
        return adapter

    contexts = []
    yield configure
    for context in reversed(contexts):
        context.__exit__(None, None, None)


# One call


def test_predict_asks_the_model_and_parses_its_answer(configured):
    model = fake_model("answer: Paris")
    configured(model)
    prediction = dspy.Predict("question -> answer")(question="Capital of France?")
    assert prediction.answer == "Paris"
    assert [message["role"] for message in model.rendered[0]] == ["system", "user"]


def test_history_and_usage_are_recorded(configured, capsys):
    adapter = configured(fake_model("answer: Paris"))
    predict = dspy.Predict(QA)
    with dspy.track_usage() as tracker:
        predict(question="Capital of France?")
    [entry] = adapter.lm.history
    assert entry["model"] == adapter.lm.model
    assert entry["outputs"] == ["answer: Paris"]
    usage = tracker.get_total_tokens()[adapter.lm.model]
    assert usage["completion_tokens"] == len("answer: Paris")
    assert usage["prompt_tokens"] == entry["usage"]["prompt_tokens"]
    assert predict.history == [entry]
    dspy.inspect_history()
    assert "Capital of France?" in capsys.readouterr().out


def test_acall_gives_the_same(configured):
    adapter = configured(
        fake_model(
            echo,
        ),
        seed=1,
    )
    predict = dspy.Predict(QA)

    async def main():
        return await asyncio.gather(*(predict.acall(question=f"q{i}") for i in range(8)))

    predictions = asyncio.run(main())
    assert [p.answer for p in predictions] == [f"q{i} / 1" for i in range(8)]
    assert len(adapter.lm.history) == 8


def test_a_repeated_question_is_answered_by_dspys_cache(configured):
    model = fake_model(echo)
    configured(model)
    predict = dspy.Predict(QA)
    first = predict(question="q").answer
    assert predict(question="q").answer == first
    assert len(model.generator.requests) == 1
    assert predict(question="q", config={"rollout_id": 1}).answer != first
    assert len(model.generator.requests) == 2


def test_n_candidates_are_different_attempts(configured):
    model = fake_model(echo)
    configured(model)
    prediction = dspy.Predict(QA, n=4)(question="q")
    answers = prediction.completions.answer
    assert len(set(answers)) == 4
    assert len({request.seed for request in model.generator.requests}) == 4


def test_generation_settings_reach_the_sampler(configured):
    model = fake_model("answer: x")
    configured(model)
    settings = {"temperature": 0.1, "top_k": 3, "seed": 5, "stop": ["\n"], "max_tokens": 20}
    metadata = {"llamacpp": {"min_p": 0.3}}
    dspy.Predict(QA)(question="q", config={**settings, "metadata": metadata})
    [asked] = model.generator.requests
    assert (asked.seed, asked.stop, asked.max_tokens) == (5, ("\n",), 20)
    assert (asked.sampling.temperature, asked.sampling.top_k) == (0.1, 3)
    assert asked.sampling.min_p == 0.3


@pytest.mark.parametrize("fallback", [True, False])
def test_an_answer_that_does_not_parse_is_dspys_error(configured, fallback):
    model = fake_model("I cannot say.")
    configured(model, use_json_adapter_fallback=fallback)
    with pytest.raises(AdapterParseError) as caught:
        dspy.Predict("question -> answer: int")(question="q")
    assert caught.value.adapter_name == ("JSONAdapter" if fallback else "LlamaCppAdapter")
    assert len(model.generator.requests) == 1 + fallback


def test_an_empty_answer_is_dspys_error(configured):
    configured(fake_model(""), use_json_adapter_fallback=False)
    with pytest.raises(AdapterParseError, match="empty"):
        dspy.Predict(QA)(question="q")


def json_when_asked_for(prompt, request):
    return '{"answer": 4}' if "JSON object" in prompt else "four, I think"


@pytest.mark.parametrize("is_async", [False, True])
def test_an_answer_that_does_not_parse_is_asked_for_once_more_as_json(configured, is_async):
    model = fake_model(json_when_asked_for)
    adapter = configured(model, temperature=0.25)
    predict = dspy.Predict("question -> answer: int", max_tokens=50)
    if is_async:
        prediction = asyncio.run(predict.acall(question="2+2?"))
    else:
        prediction = predict(question="2+2?")
    assert prediction.answer == 4
    first, second = model.generator.requests
    assert second.max_tokens == first.max_tokens == 50
    assert second.sampling == first.sampling
    assert len(adapter.lm.history) == 2


def test_the_fallback_goes_where_the_call_went(configured):
    outer = DummyLM([{"answer": "unused"}])
    adapter = configured(fake_model(json_when_asked_for), lm=outer)
    assert dspy.Predict("question -> answer: int")(question="2+2?").answer == 4
    assert [entry["model"] for entry in outer.history] == [adapter.lm.model] * 2


def test_an_engines_error_is_no_reason_to_ask_again(configured):
    model = fake_model("unused", context_length=100)
    configured(model)
    with pytest.raises(ContextWindowExceededError):
        dspy.Predict(QA)(question="long " * 100)
    assert len(model.rendered) == 1


def test_an_image_is_refused_before_anything_is_computed(configured):
    model = fake_model("answer: a cat")
    configured(model)
    image = dspy.Image("data:image/png;base64,aGk=")
    with pytest.raises(dspy.LMUnsupportedFeatureError, match=r"'image'.*text only"):
        dspy.Predict("photo: dspy.Image -> answer")(photo=image)
    assert model.generator.requests == []


def test_a_long_prompt_is_dspys_context_error(configured):
    configured(fake_model("answer: x", context_length=100))
    with pytest.raises(ContextWindowExceededError, match="holds 100"):
        dspy.Predict(QA)(question="long " * 100)


# Programs


def test_best_of_n_sees_different_candidates(configured):
    model = fake_model(echo)
    configured(model)
    seen = []

    def never_enough(_, prediction):
        seen.append(prediction.answer)
        return 0.0

    dspy.BestOfN(dspy.Predict(QA), N=3, reward_fn=never_enough, threshold=1.0)(question="q")
    assert len(set(seen)) == 3
    assert all(request.sampling.temperature == 1.0 for request in model.generator.requests)


def test_chain_of_thought_and_few_shot_examples(configured):
    model = fake_model("reasoning: think\nanswer: 4")
    configured(model)
    program = dspy.ChainOfThought(QA)
    trainset = [dspy.Example(question=f"{i}?", answer="4").with_inputs("question") for i in "123"]

    def right(example, prediction, _):
        return prediction.answer == example.answer

    optimizer = dspy.BootstrapFewShot(right, max_bootstrapped_demos=2, max_labeled_demos=0)
    compiled = optimizer.compile(program, trainset=trainset)
    assert compiled(question="2+2").answer == "4"
    roles = [message["role"] for message in model.rendered[-1]]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]
    assert model.rendered[-1][2]["content"] == "reasoning: think\nanswer: 4"


def test_twelve_threads_never_mix_answers(configured):
    model = fake_model(echo)
    running, most, lock = [0], [0], threading.Lock()
    together = threading.Barrier(12)

    def script(prompt, request):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        if "warm" in prompt:
            together.wait(30)
        with lock:
            running[0] -= 1
        return echo(prompt, request)

    model.generator.script = script
    configured(model, seed=2)
    predict = dspy.Predict(QA)
    questions = [f"warm{i}" for i in range(12)] + [f"q{i}" for i in range(60)]
    calls = [(predict, dspy.Example(question=q).with_inputs("question")) for q in questions]
    parallel = dspy.Parallel(num_threads=12, disable_progress_bar=True)
    answers = [prediction.answer for prediction in parallel(calls)]
    assert answers == [f"{question} / 2" for question in questions]
    assert most[0] == 12


def test_a_copied_program_shares_the_model(configured):
    model = fake_model("answer: x")
    adapter = configured(model)
    program = dspy.ChainOfThought(QA)
    program.set_lm(adapter.lm)
    twin = program.deepcopy()
    assert twin.predict.lm.engine is adapter.lm.engine
    with pytest.raises(AdapterParseError):
        twin(question="q")


def test_a_program_is_saved_and_finds_its_model_again(configured, tmp_path):
    adapter = configured(fake_model("answer: Paris"), temperature=0.4)
    program = dspy.Predict(QA)
    program.set_lm(adapter.lm)
    program.save(tmp_path / "program.json")
    loaded = dspy.Predict(QA)
    with pytest.raises(ValueError, match="allow_unsafe_lm_state"):
        loaded.load(tmp_path / "program.json")
    loaded.load(tmp_path / "program.json", allow_unsafe_lm_state=True)
    assert loaded.lm.engine is adapter.lm.engine
    assert loaded.lm.kwargs["temperature"] == 0.4
    with dspy.context(lm=None):
        assert loaded(question="q").answer == "Paris"
        assert asyncio.run(loaded.acall(question="other")).answer == "Paris"


def test_streamify_delivers_the_answer_piece_by_piece(configured):
    configured(fake_model("answer: Paris"))
    program = dspy.streamify(dspy.Predict(QA))

    async def main():
        return [piece async for piece in program(question="q")]

    *pieces, prediction = asyncio.run(main())
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert text == "answer: Paris"
    assert prediction.answer == "Paris"


@pytest.mark.parametrize(
    "adapter", [dspy.ChatAdapter(), dspy.JSONAdapter(), dspy.XMLAdapter()], ids=lambda a: type(a)
)
def test_dspys_own_adapters_work_over_the_same_lm(adapter):
    texts = {
        dspy.ChatAdapter: "[[ ## answer ## ]]\nParis",
        dspy.JSONAdapter: '{"answer": "Paris"}',
        dspy.XMLAdapter: "<answer>Paris</answer>",
    }
    lm = adapter_of(fake_model(texts[type(adapter)])).lm
    with dspy.context(lm=lm, adapter=adapter):
        assert dspy.Predict(QA)(question="q").answer == "Paris"


def test_react_calls_tools_by_what_the_model_writes(configured):
    turns = iter(
        [
            'next_thought: add them\nnext_tool_name: add\nnext_tool_args: {"a": 2, "b": 3}',
            "next_thought: done\nnext_tool_name: finish\nnext_tool_args: {}",
            "reasoning: I added\nanswer: 5",
        ]
    )
    model = fake_model(lambda *_: next(turns))
    configured(model)

    def add(a: int, b: int) -> int:
        return a + b

    prediction = dspy.ReAct("question -> answer: int", tools=[add])(question="2+3?")
    assert prediction.answer == 5
    assert prediction.trajectory["observation_0"] == 5
    assert "next_tool_args: (a JSON object)" in model.rendered[0][0]["content"]


# Routing


def test_a_call_with_another_lm_goes_to_our_model_under_that_lms_history(configured):
    outer = DummyLM([{"answer": "from the dummy"}])
    adapter = configured(fake_model("answer: ours"), lm=outer)
    predict = dspy.Predict(QA)
    with dspy.track_usage() as tracker:
        assert predict(question="q").answer == "ours"
        assert asyncio.run(predict.acall(question="other")).answer == "ours"
    assert [entry["model"] for entry in outer.history] == [adapter.lm.model] * 2
    assert adapter.lm.history == []
    assert set(tracker.get_total_tokens()) == {adapter.lm.model}


def test_the_other_lms_settings_are_taken_over(configured):
    outer = dspy.LM(
        "openai/none",
        temperature=0.9,
        max_tokens=33,
        cache=False,
        num_retries=7,
        top_p=0.7,
        seed=4,
        stop=["END"],
        metadata={"llamacpp": {"min_p": 0.25}},
    )
    model = fake_model("answer: ours")
    adapter = configured(model, lm=outer, temperature=0.1, seed=1)
    predict = dspy.Predict(QA)
    predict(question="q")
    predict(question="q", config={"max_tokens": 44})
    first, second = model.generator.requests
    assert (first.max_tokens, first.seed, first.stop) == (33, 4, ("END",))
    assert (first.sampling.temperature, first.sampling.top_p) == (0.9, 0.7)
    assert first.sampling.min_p == 0.25
    assert second.max_tokens == 44
    routed = adapter._route(outer)
    assert (routed.cache, routed.num_retries) == (False, 7)


def test_what_the_other_lm_leaves_open_comes_from_our_config(configured):
    model = fake_model("answer: ours")
    configured(model, lm=dspy.LM("openai/none"), temperature=0.1, max_tokens=77)
    dspy.Predict(QA)(question="q")
    [asked] = model.generator.requests
    assert (asked.sampling.temperature, asked.max_tokens) == (0.1, 77)


def test_a_reasoning_models_max_tokens_are_taken_over_too(configured):
    model = fake_model("answer: ours", context_length=100_000)
    configured(model, lm=dspy.LM("openai/gpt-5", temperature=1.0, max_tokens=16000))
    dspy.Predict(QA)(question="q")
    assert model.generator.requests[0].max_tokens == 16000


def test_the_other_lms_callbacks_hear_of_the_call(configured):
    heard = []

    class Listener(dspy.utils.BaseCallback):
        def on_lm_start(self, call_id, instance, inputs):
            heard.append(instance.model)

    outer = dspy.LM("openai/none", callbacks=[Listener()])
    adapter = configured(fake_model("answer: ours"), lm=outer)
    dspy.Predict(QA)(question="q")
    assert heard == [adapter.lm.model]


def test_a_copy_of_our_lm_is_used_as_it_is():
    adapter = adapter_of(fake_model("answer: ours"))
    copied = adapter.lm.copy(temperature=0.5, rollout_id=3)
    assert adapter._route(copied) is copied
    assert adapter._route(adapter.lm) is adapter.lm


def test_rollouts_of_another_lm_bypass_the_cache(configured):
    model = fake_model(echo)
    outer = dspy.LM("openai/none", temperature=1.0)
    configured(model, lm=outer)
    predict = dspy.Predict(QA)
    answers = {predict(question="q", lm=outer.copy(rollout_id=i)).answer for i in (1, 2, 3, 3)}
    assert len(answers) == 3


def run_configured(body, **settings):
    """Run a function as a program that called dspy.configure: outside of this test's context."""

    def run():
        dspy.configure(**settings)
        try:
            return body()
        finally:
            dspy.configure(lm=None, adapter=None)

    return contextvars.Context().run(run)


def lm_that_answers(text, model="dummy"):
    lm = DummyLM([{"answer": text}] * 9, adapter=dspy.ChatAdapter())
    lm.model = model
    return lm


@pytest.mark.parametrize(
    ("route_other_lms", "teacher_answers"), [(None, True), (True, False), (False, True)]
)
def test_a_teacher_answers_itself_unless_it_is_told_otherwise(route_other_lms, teacher_answers):
    model, teacher = fake_model("answer: ours"), lm_that_answers("the teacher's", "teacher")
    adapter = adapter_of(model, route_other_lms=route_other_lms)
    predict = dspy.Predict(QA)

    def program():
        assert predict(question="q").answer == "ours"
        with dspy.context(lm=teacher):
            return predict(question="q").answer

    answer = run_configured(program, lm=adapter.lm, adapter=adapter)
    assert ("the teacher's" in answer) is teacher_answers
    assert len(teacher.history) == 1
    assert len(model.generator.requests) == (1 if teacher_answers else 2)


@pytest.mark.parametrize(("route_other_lms", "ours"), [(None, True), (True, True), (False, False)])
def test_the_lm_that_dspy_is_configured_with_is_taken_over(route_other_lms, ours):
    configured, teacher = (
        lm_that_answers("the lm's own"),
        lm_that_answers("the teacher's", "teacher"),
    )
    adapter = adapter_of(fake_model("answer: ours"), route_other_lms=route_other_lms)
    predict = dspy.Predict(QA)

    def program():
        answers = [predict(question="q").answer]
        answers += [predict(question="q", lm=configured.copy(temperature=1.0)).answer]
        return answers, predict(question="q", lm=teacher).answer

    answers, taught = run_configured(program, lm=configured, adapter=adapter)
    assert [answer == "ours" for answer in answers] == [ours, ours]
    assert (taught == "ours") is (route_other_lms is True)


def test_an_adapter_without_a_model_formats_and_parses():
    model = fake_model("answer: ours")
    lm, adapter = adapter_of(model).lm, LlamaCppAdapter()
    with dspy.context(lm=lm, adapter=adapter):
        assert dspy.Predict(QA)(question="q").answer == "ours"
    assert model.rendered[0][-1]["content"] == "question: q"
    with pytest.raises(ConfigurationError, match="from_loaded_model"):
        _ = adapter.lm
    with pytest.raises(ConfigurationError, match="no lm"):
        adapter(None, {}, dspy.Signature(QA), [], {"question": "q"})


def test_two_adapters_keep_to_their_own_models():
    first = adapter_of(fake_model("answer: one"))
    second = adapter_of(fake_model("answer: two", fingerprint="ff00"))
    predict = dspy.Predict(QA)
    for _ in range(2):
        with dspy.context(lm=first.lm, adapter=first):
            assert predict(question="q").answer == "one"
        with dspy.context(lm=second.lm, adapter=second):
            assert predict(question="q").answer == "two"
        with dspy.context(lm=first.lm, adapter=second):
            assert predict(question="q").answer == "two"


def test_without_an_lm_the_adapter_answers_when_called_directly():
    adapter = adapter_of(fake_model("answer: ours"))
    signature = dspy.Signature(QA)
    assert adapter(None, {}, signature, [], {"question": "q"}) == [{"answer": "ours"}]


def test_predict_demands_an_lm_before_it_asks_the_adapter():
    """Why the documentation says dspy.configure(lm=adapter.lm, adapter=adapter)."""
    adapter = adapter_of(fake_model("answer: ours"))
    with dspy.context(adapter=adapter), pytest.raises(ValueError, match="No LM is loaded"):
        dspy.Predict(QA)(question="q")


def test_the_adapter_never_loads_a_model():
    model = fake_model("answer: x")
    adapter = adapter_of(model)
    assert isinstance(adapter.lm.engine, LlamaCppEngine)
    assert adapter.lm.engine.loaded is model
    assert model.generator.requests == []
