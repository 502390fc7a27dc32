"""DSPy's evaluation and optimizers on the real model, with the smallest of budgets."""

from __future__ import annotations

import dspy
import pytest
from dspy_programs import run_configured
from fake_generator import adapter_of, fake_model

pytestmark = pytest.mark.model

TRAINSET = [
    dspy.Example(question=f"{a}+{b}?", answer=a + b).with_inputs("question")
    for a, b in [(1, 1), (3, 4), (2, 2), (5, 1)]
]


def right(example, prediction, trace=None):
    return float(example.answer == prediction.answer)


def answered(example, prediction, trace=None):
    return isinstance(prediction.answer, int)


class Messages(dspy.utils.BaseCallback):
    """Keeps the system message of every call of a language model."""

    def __init__(self):
        self.systems = []

    def on_lm_start(self, call_id, instance, inputs):
        self.systems.append(inputs["messages"][0]["content"])


def predict_sums():
    predict = dspy.Predict(dspy.Signature("question -> answer: int", "Add the numbers."))
    predict.demos = TRAINSET[:2]
    return predict


def test_evaluate_with_sixteen_threads_scores_like_one_by_one(smollm2_adapter):
    smollm2_adapter(max_tokens=6)
    devset = [
        dspy.Example(question=f"{n}+1?", answer=n + 1).with_inputs("question") for n in range(16)
    ]
    predict = predict_sums()
    evaluate = dspy.Evaluate(devset=devset, metric=right, num_threads=16, display_progress=False)
    together = evaluate(predict)
    alone = [predict(question=example.question).answer for example in devset]
    assert [prediction.answer for _, prediction, _ in together.results] == alone
    scores = [right(example, prediction) for example, prediction, _ in together.results]
    assert together.score == round(100 * sum(scores) / len(devset), 2)


def test_labeled_few_shot_shows_examples(smollm2_adapter):
    adapter = smollm2_adapter(max_tokens=6)
    program = dspy.Predict("question -> answer: int")
    compiled = dspy.LabeledFewShot(k=3).compile(program, trainset=TRAINSET)
    assert isinstance(compiled(question="2+3?").answer, int)
    assert len(adapter.lm.history[0]["messages"]) == 2 + 2 * 3


def test_bootstrap_few_shot_shows_what_the_model_wrote(smollm2_adapter):
    adapter = smollm2_adapter()
    program = dspy.ChainOfThought("question -> answer: int")
    program.predict.demos = [
        dspy.Example(question="4+4?", reasoning="4 and 4 make 8.", answer=8),
        dspy.Example(question="3+2?", reasoning="3 and 2 make 5.", answer=5),
    ]
    optimizer = dspy.BootstrapFewShot(answered, max_bootstrapped_demos=2, max_labeled_demos=0)
    compiled = optimizer.compile(program, teacher=program.deepcopy(), trainset=TRAINSET)
    assert len(compiled.predict.demos) == 2
    for demo in compiled.predict.demos:
        assert demo.augmented
        assert demo.reasoning
    assert isinstance(compiled(question="2+3?").answer, int)
    assert "reasoning:" in adapter.lm.history[-1]["messages"][2]["content"]


def test_a_teachers_lm_is_asked_itself(smollm2_adapter):
    """Its answers are scripted; the student is SmolLM2."""
    adapter = smollm2_adapter(max_tokens=6)
    sums = {"1+1?": 2, "3+4?": 7}
    scripted = fake_model(lambda prompt, _: f"answer: {sums[prompt.split()[-2]]}", name="teacher")
    teacher = adapter_of(scripted).lm
    optimizer = dspy.BootstrapFewShot(
        right, max_bootstrapped_demos=2, max_labeled_demos=0, teacher_settings={"lm": teacher}
    )

    def program():
        student = dspy.Predict("question -> answer: int")
        compiled = optimizer.compile(student, trainset=TRAINSET[:2])
        assert adapter.lm.history == []
        return compiled, compiled(question="2+3?")

    compiled, prediction = run_configured(program, lm=adapter.lm, adapter=adapter)
    assert len(teacher.history) == 2
    assert [demo.answer for demo in compiled.demos] == [2, 7]
    assert isinstance(prediction.answer, int)
    assert len(adapter.lm.history) == 1


def test_miprov2_tries_instructions_and_demos(smollm2_adapter):
    adapter = smollm2_adapter(max_tokens=10)
    asked = Messages()
    optimizer = dspy.MIPROv2(
        right,
        auto=None,
        num_candidates=2,
        max_bootstrapped_demos=1,
        max_labeled_demos=1,
        init_temperature=0.5,
        num_threads=2,
    )
    with dspy.context(callbacks=[asked]):
        compiled = optimizer.compile(
            predict_sums(),
            trainset=TRAINSET[:2],
            valset=TRAINSET[2:],
            num_trials=1,
            minibatch=False,
            program_aware_proposer=False,
            data_aware_proposer=False,
            tip_aware_proposer=False,
            fewshot_aware_proposer=False,
        )
    assert isinstance(compiled(question="2+3?").answer, int)
    assert any("proposed_instruction:" in system for system in asked.systems)
    assert compiled.trial_logs
    assert adapter.lm.history


def test_gepa_reflects_and_tries_what_it_proposed(smollm2_adapter):
    adapter = smollm2_adapter(max_tokens=12)
    asked = Messages()

    def feedback(example, prediction, trace=None, pred_name=None, pred_trace=None):
        return dspy.Prediction(score=0.5, feedback=f"The answer is {example.answer}.")

    optimizer = dspy.GEPA(
        feedback,
        max_metric_calls=4,
        reflection_minibatch_size=1,
        reflection_lm=adapter.lm.copy(temperature=1.0, seed=1),
        use_merge=False,
        num_threads=1,
        track_stats=True,
    )
    with dspy.context(callbacks=[asked]):
        compiled = optimizer.compile(predict_sums(), trainset=TRAINSET[:1], valset=TRAINSET[2:3])
    assert isinstance(compiled(question="2+3?").answer, int)
    assert any("new_instruction" in system for system in asked.systems)
    assert compiled.detailed_results.total_metric_calls >= 3
