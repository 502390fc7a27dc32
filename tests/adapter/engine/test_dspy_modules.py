"""DSPy's modules on the real model, through LlamaCppAdapter.

A model of 135M parameters answers poorly: what is asserted is types, counts, routing and form.
"""

from __future__ import annotations

import asyncio
import enum
from typing import Literal

import dspy
import pydantic
import pytest

pytestmark = pytest.mark.model


class Sentiment(enum.Enum):
    POSITIVE = "positive"
    NEGATIVE = "negative"


class Place(pydantic.BaseModel):
    city: str
    country: str


class Ticket(dspy.Signature):
    """Read a customer's message."""

    message: str = dspy.InputField()
    sentiment: Sentiment = dspy.OutputField()
    urgency: Literal["low", "high"] = dspy.OutputField()
    goods: list[str] = dspy.OutputField()
    place: Place = dspy.OutputField()
    refund: bool = dspy.OutputField()
    price: float = dspy.OutputField()


TICKETS = [
    dspy.Example(
        message="My new lamp arrived broken in Paris! I paid 40.50 and want it back.",
        sentiment=Sentiment.NEGATIVE,
        urgency="high",
        goods=["lamp"],
        place=Place(city="Paris", country="France"),
        refund=True,
        price=40.5,
    ),
    dspy.Example(
        message="Rome is lovely. I like the chair and the desk; 200.00 was fair.",
        sentiment=Sentiment.POSITIVE,
        urgency="low",
        goods=["chair", "desk"],
        place=Place(city="Rome", country="Italy"),
        refund=False,
        price=200.0,
    ),
]

ADD = dspy.Signature("question -> answer: int", "Add the numbers.")
SUMS = [dspy.Example(question=f"{a}+{b}?", answer=a + b) for a, b in [(1, 1), (3, 4)]]
REASONED_SUMS = [
    dspy.Example(question="1+1?", reasoning="1 and 1 make 2.", answer=2),
    dspy.Example(question="3+4?", reasoning="3 and 4 make 7.", answer=7),
]


def predict_sums(**config):
    predict = dspy.Predict(ADD, **config)
    predict.demos = SUMS
    return predict


def test_predict_gives_every_field_its_type(smollm2_adapter):
    adapter = smollm2_adapter(max_tokens=64)
    predict = dspy.Predict(Ticket)
    predict.demos = TICKETS
    ticket = predict(message="The table came scratched to Berlin. I paid 80.00.")
    assert isinstance(ticket.sentiment, Sentiment)
    assert ticket.urgency in ("low", "high")
    assert all(isinstance(item, str) for item in ticket.goods)
    assert isinstance(ticket.place, Place)
    assert isinstance(ticket.refund, bool)
    assert isinstance(ticket.price, float)
    assert len(adapter.lm.history) == 1  # no fallback was needed


def test_chain_of_thought_reasons_first(smollm2_adapter):
    adapter = smollm2_adapter()
    program = dspy.ChainOfThought(ADD)
    program.predict.demos = REASONED_SUMS
    prediction = program(question="2+2?")
    assert prediction.reasoning
    assert isinstance(prediction.answer, int)
    [output] = adapter.lm.history[0]["outputs"]
    assert output.startswith("reasoning:")


def test_react_calls_a_tool_and_answers(smollm2_adapter):
    smollm2_adapter(max_tokens=40)
    calls = []

    def add(a: int, b: int) -> int:
        """Add two numbers."""
        calls.append((a, b))
        return a + b

    agent = dspy.ReAct("question -> answer: int", tools=[add], max_iters=1)
    agent.react.demos = [
        dspy.Example(
            question=f"{a}+{b}?",
            trajectory="",
            next_thought="Add them.",
            next_tool_name="add",
            next_tool_args={"a": a, "b": b},
        )
        for a, b in [(1, 1), (3, 2)]
    ]
    agent.extract.predict.demos = [
        dspy.Example(question="1+1?", trajectory="2", reasoning="The tool says 2.", answer=2)
    ]
    prediction = agent(question="2+3?")
    assert prediction.trajectory["tool_name_0"] == "add"
    [(a, b)] = calls
    assert prediction.trajectory["observation_0"] == a + b
    assert isinstance(prediction.answer, int)


def test_program_of_thought_gets_code_that_it_can_read(smollm2_adapter):
    """As far as Deno is not needed: the code is written, parsed, and compiles."""
    smollm2_adapter(max_tokens=80)
    with pytest.warns(DeprecationWarning, match="ProgramOfThought"):
        program = dspy.ProgramOfThought(
            "question -> answer: int", interpreter_factory=dspy.PythonInterpreter
        )
    program.code_generate.predict.demos = [
        dspy.Example(
            question=f"1{sign}2?",
            reasoning=f"{verb}.",
            generated_code=f'```python\nresult = 1 {sign} 2\nSUBMIT({{"answer": result}})\n```',
        )
        for sign, verb in [("+", "Add"), ("*", "Multiply")]
    ]
    code, error = program._parse_code(program.code_generate(question="2+7?"))
    assert error is None
    assert "SUBMIT" in code
    compile(code, "generated", "exec")


def test_best_of_n_draws_candidates_until_one_is_good(smollm2_adapter):
    """Any text is an answer here: seeds are drawn, so no candidate is known beforehand."""
    adapter = smollm2_adapter(max_tokens=8)
    seen = []

    def reward(_, prediction):
        seen.append(prediction.answer)
        return float(len(seen) == 4)

    predict = dspy.Predict("question -> answer")
    choice = dspy.BestOfN(predict, N=5, reward_fn=reward, threshold=1.0)
    best = choice(question="Tell me a story.")  # of 40 answers 39 were different
    assert len(seen) == 4
    assert best.answer == seen[-1]
    assert len(set(seen)) > 1
    assert adapter.lm.kwargs["temperature"] == 0.0  # the copies' temperature stayed theirs


def test_refine_runs_with_an_adapter_that_needs_its_model(smollm2_adapter):
    """Refine makes the adapter's class anew, without arguments, to hand over its advice."""
    smollm2_adapter(max_tokens=8)
    refine = dspy.Refine(predict_sums(), N=2, reward_fn=lambda *_: 1.0, threshold=1.0)
    assert isinstance(refine(question="2+3?").answer, int)


def test_multi_chain_comparison_weighs_what_others_found(smollm2_adapter):
    smollm2_adapter()
    with pytest.warns(DeprecationWarning, match="prefix"):
        compare = dspy.MultiChainComparison("question -> answer", M=2, temperature=0.0)
    compare.predict.demos = [
        dspy.Example(
            question="1+1?",
            reasoning_attempt_1="«I'm trying to add I'm not sure but my prediction is 2»",
            reasoning_attempt_2="«I'm trying to guess I'm not sure but my prediction is 3»",
            rationale="Adding gives 2.",
            answer="2",
        )
    ]
    attempts = [{"reasoning": "add", "answer": "4"}, {"reasoning": "guess", "answer": "5"}]
    prediction = compare(attempts, question="2+2?")
    assert prediction.rationale
    assert prediction.answer


def test_candidates_are_drawn_one_by_one(smollm2_adapter):
    adapter = smollm2_adapter(max_tokens=8)
    predict = dspy.Predict("question -> answer", n=3, temperature=1.5)
    prediction = predict(question="Name a colour.")
    assert len(prediction.completions.answer) == 3
    [entry] = adapter.lm.history
    assert len(entry["outputs"]) == 3


def test_the_async_ways_give_the_same_answer(smollm2_adapter):
    smollm2_adapter(max_tokens=8)
    predict = predict_sums(cache=False)
    answer = predict(question="2+3?").answer

    async def main():
        awaited, *rest = await asyncio.gather(
            predict.acall(question="2+3?"), dspy.asyncify(predict)(question="2+3?")
        )
        return [awaited, *rest]

    assert [prediction.answer for prediction in asyncio.run(main())] == [answer, answer]


def test_history_of_a_conversation_is_part_of_the_prompt(smollm2_adapter):
    class Chat(dspy.Signature):
        """Answer briefly."""

        history: dspy.History = dspy.InputField()
        question: str = dspy.InputField()
        answer: str = dspy.OutputField()

    adapter = smollm2_adapter(max_tokens=12)
    chat = dspy.Predict(Chat)
    turns = []
    for question in ("What is the capital of France?", "And of Italy?"):
        prediction = chat(question=question, history=dspy.History(messages=turns))
        turns = [*turns, {"question": question, "answer": prediction.answer}]
    first, second = (entry["usage"]["prompt_tokens"] for entry in adapter.lm.history)
    assert second > first
    roles = [message["role"] for message in adapter.lm.history[1]["messages"]]
    assert roles == ["system", "user", "assistant", "user"]


def test_inspect_history_shows_the_messages(smollm2_adapter, capsys):
    smollm2_adapter(max_tokens=8)
    predict_sums()(question="2+3?")
    dspy.inspect_history()
    shown = capsys.readouterr().out
    assert "question: 2+3?" in shown
    assert "answer:" in shown


def test_contexts_override_the_lm_the_adapter_and_the_settings(smollm2_adapter):
    adapter = smollm2_adapter(max_tokens=8)
    predict = predict_sums(cache=False)
    predict(question="2+3?")
    copied = adapter.lm.copy(max_tokens=1)
    with (
        dspy.context(lm=copied, adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)),
        pytest.raises(dspy.AdapterParseError),
    ):
        predict(question="2+3?")
    predict(question="2+3?")
    assert [len(adapter.lm.history), len(copied.history)] == [2, 1]
    assert copied.history[0]["usage"]["completion_tokens"] == 1
    assert "[[ ## answer ## ]]" in copied.history[0]["messages"][0]["content"]


def test_a_programs_state_and_a_whole_program_are_saved(smollm2_adapter, tmp_path):
    adapter = smollm2_adapter(max_tokens=8)
    program = dspy.ChainOfThought(ADD)
    program.predict.demos = REASONED_SUMS
    program.save(tmp_path / "state.json")
    program.save(tmp_path / "whole", save_program=True)

    restored = dspy.ChainOfThought(ADD)
    restored.load(tmp_path / "state.json")
    whole = dspy.load(tmp_path / "whole", allow_pickle=True)
    for again in (restored, whole):
        assert [dict(demo)["answer"] for demo in again.predict.demos] == [2, 7]
        assert again.predict.lm is None

    # With the model's lm in it, the state still saves; the whole program says why it does not.
    program.set_lm(adapter.lm)
    program.save(tmp_path / "with-lm.json")
    restored.load(tmp_path / "with-lm.json", allow_unsafe_lm_state=True)
    assert restored.predict.lm.engine is adapter.lm.engine
    with pytest.raises(RuntimeError, match="cannot be pickled"):
        program.save(tmp_path / "whole-with-lm", save_program=True)
