from __future__ import annotations

import asyncio
import threading

import dspy
import pytest
from dspy.utils.dummies import DummyLM
from dspy.utils.exceptions import AdapterParseError, ContextWindowExceededError
from fake_generator import adapter_of, echo, fake_model

from adapter import LlamaCppStreamListener
from adapter.engine.engine import LlamaCppEngine

QA = "question -> answer"


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


def in_either_form(prompt, request):
    return '{"answer": 4}' if "JSON object" in prompt else "answer: 4"


@pytest.mark.parametrize("is_async", [False, True])
def test_a_model_without_a_chat_template_is_asked_in_json(configured, is_async):
    """It was not taught to follow instructions, but has read much JSON."""
    model = fake_model(in_either_form, has_chat_template=False)
    adapter = configured(model)
    predict = dspy.Predict("question -> answer: int")
    found = asyncio.run(predict.acall(question="q")) if is_async else predict(question="q")
    assert found.answer == 4
    assert [entry["outputs"] for entry in adapter.lm.history] == [['{"answer": 4}']]


@pytest.mark.parametrize("case", ["template", "demonstration", "setting", "stream", "tools"])
def test_it_is_asked_in_lines_where_more_is_known_or_wanted_of_them(configured, case):
    answer = 'answer: 4\ncalls: {"tool_calls": []}' if case == "tools" else "answer: 4"
    model = fake_model(answer, has_chat_template=case == "template")
    adapter = configured(model, use_json_adapter_fallback=case != "setting")
    signature, inputs = "question -> answer: int", {"question": "q"}
    if case == "tools":
        signature = "question, tools: list[dspy.Tool] -> answer: int, calls: dspy.ToolCalls"
        inputs["tools"] = [dspy.Tool(len, "length", args={})]
    predict = dspy.Predict(signature)
    if case == "demonstration":
        predict.demos = [dspy.Example(question="1+1", answer=2).with_inputs("question")]
    if case == "stream":
        listener = LlamaCppStreamListener("answer")
        program = dspy.streamify(predict, stream_listeners=[listener])

        async def main():
            return [piece async for piece in program(**inputs)]

        assert asyncio.run(main())[-1].answer == 4
    else:
        assert predict(**inputs).answer == 4
    assert len(adapter.lm.history) == 1
    assert "JSON object" not in model.rendered[0][0]["content"].partition("calls:")[0]


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


def test_refine_hands_its_advice_to_the_next_attempt(configured):
    def script(prompt, request):
        if "advice:" in prompt:
            return 'discussion: too long\nadvice: {"self": "Be brief."}'
        return "answer: short" if "hint_: Be brief." in prompt else "answer: long and longer"

    model = fake_model(script, context_length=40_000)  # DSPy shows it the module's own code
    configured(model)

    def is_short(_, prediction):
        return float(prediction.answer == "short")

    refine = dspy.Refine(dspy.Predict(QA), N=3, reward_fn=is_short, threshold=1.0)
    assert refine(question="q").answer == "short"
    assert len(model.generator.requests) == 3


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
    assert model.rendered[-1][2]["content"] == "reasoning: think\nanswer:\n4"


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
    assert "next_tool_args: <a JSON object>" in model.rendered[0][0]["content"]


def test_the_adapter_never_loads_a_model():
    model = fake_model("answer: x")
    adapter = adapter_of(model)
    assert isinstance(adapter.lm.engine, LlamaCppEngine)
    assert adapter.lm.engine.loaded is model
    assert model.generator.requests == []
