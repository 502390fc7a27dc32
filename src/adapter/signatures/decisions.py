"""Output fields with few possible values, answered by how likely the model finds each value.

These are fields for which DSPy asks for decision evidence (``dspy.experimental`` Choice, Score and
Noul, and Predict's decision configuration), and on request those of type bool, Literal and Enum.
The other fields of the signature are generated first, and the decisions are measured after them.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import dspy
from dspy.adapters import Adapter
from dspy.clients.base_lm import BaseLM
from dspy.lm15 import DataPart, Request, Response, request_from_openai_chat
from dspy.signatures import Signature
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from adapter.signatures.field_lines import output_lines
from adapter.signatures.field_values import Misfit, constrained_value
from adapter.signatures.paragraphs import below_their_names
from adapter.signatures.typed_values import allowed_values

Distribution = Mapping[str, float]

# The types that DSPy substitutes for its own, with the kind of question that they stand for.
_EVIDENCE = ({"noul"}, {"probabilities", "confidence"})
_QUESTIONS = ("noul", "score", "choice")


@dataclass(frozen=True)
class Decision:
    """An output field to measure.

    Attributes:
        type_: its type in the signature that the model is shown.
        description: what the model is told about it.
        keys: its possible values as they are written; at least one, and none empty.
        answer: makes the field's value from the probabilities of the keys.
    """

    type_: Any
    description: str
    keys: tuple[str, ...]
    answer: Callable[[Distribution], Any]


def decisions_in(
    signature: type[Signature], lm: BaseLM, *, pick_by_likelihood: bool
) -> dict[str, Decision]:
    """Return the output fields that this lm can measure, by name.

    Args:
        pick_by_likelihood: include fields of type bool, Literal and Enum.
    """
    if not getattr(getattr(lm, "engine", None), "measures_probabilities", False):
        return {}
    found = {}
    for name, field in signature.output_fields.items():
        decision = _evidence(field)
        if decision is None and pick_by_likelihood:
            decision = _pick(name, field)
        if decision is not None and all(decision.keys):
            found[name] = decision
    return found


def confidence(distribution: Distribution) -> float:
    """The difference between the probabilities of the likeliest key and of the next.

    It is 1 for a certain answer, and 0 for a tie. Noul's confidence, which DSPy computes, is the
    same number at the threshold of 0.5.
    """
    best, second = [*sorted(distribution.values(), reverse=True), 0.0][:2]
    return best - second


@dataclass(frozen=True)
class DecisionPlan:
    """How one call is answered: what is generated, and what is measured after it.

    Attributes:
        rest: the signature of what is generated. It may have no output fields.
        shown: the signature that the model is shown to judge. The decisions come last.
        messages: the conversation about that, in OpenAI's form.
        below: the outputs that begin on the line below their names in it.
    """

    signature: type[Signature]
    decisions: Mapping[str, Decision]
    rest: type[Signature]
    shown: type[Signature]
    messages: list[dict[str, Any]]
    below: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls,
        adapter: Adapter,
        signature: type[Signature],
        decisions: Mapping[str, Decision],
        demos: list[dict[str, Any]],
        inputs: dict[str, Any],
    ) -> DecisionPlan:
        """Plan a call with at least one decision."""
        signature, examples = _with_examples(signature, decisions)
        demos = [*examples, *demos]
        rest = signature
        for name in decisions:
            rest = rest.delete(name)
        shown = rest
        for name, decision in decisions.items():
            field = dspy.OutputField(desc=decision.description)
            shown = shown.append(name, field, decision.type_)
        messages = adapter.format(shown, demos, inputs)
        below = below_their_names(shown, demos)
        return cls(signature, decisions, rest, shown, messages, below)

    def nothing_written(self, lm: BaseLM, lm_kwargs: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return an empty answer for each candidate."""
        asked = (lm_kwargs.get("n"), lm.kwargs.get("n"))
        return [{}] * next((int(n) for n in asked if n is not None), 1)

    def request(self, lm: BaseLM, written: Mapping[str, Any]) -> Request:
        """Return the request that measures the decisions.

        Args:
            written: values of the other output fields, which the answer begins with.
        """
        others = {name: field for name, field in self.rest.output_fields.items() if name in written}
        lines = output_lines(others, written, below=self.below)
        beginning = {"role": "assistant", "content": lines}
        properties = {
            name: {"type": "string", "enum": [*decision.keys]}
            for name, decision in self.decisions.items()
        }
        schema = {"type": "object", "properties": properties, "required": [*properties]}
        form = {"type": "json_schema", "json_schema": {"name": "decisions", "schema": schema}}
        messages = [*self.messages, beginning]
        request = request_from_openai_chat(
            {"model": lm.model, "messages": messages, "response_format": form}
        )
        return replace(request, config=replace(request.config, probabilities="required"))

    def values(self, written: Mapping[str, Any], response: Response) -> dict[str, Any]:
        """Return the values of all output fields, in the signature's order."""
        [part] = response.message.parts_of(DataPart)
        assert part.probabilities is not None  # the request required them
        values = {**written}
        for name, decision in self.decisions.items():
            values[name] = decision.answer(part.probabilities[name])
        ordered = [name for name in self.signature.output_fields if name in values]
        return {name: values[name] for name in dict.fromkeys([*ordered, *values])}


def _evidence(field: FieldInfo) -> Decision | None:
    """What DSPy asks for with types of its own: probabilities, and the question as JSON."""
    annotation = field.annotation
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return None
    if annotation.model_fields.keys() not in _EVIDENCE:
        return None
    try:
        question = json.loads(_described(field))
    except ValueError:
        return None
    if not isinstance(question, dict) or question.get("type") not in _QUESTIONS:
        return None
    return asked(question)


def asked(question: Mapping[str, Any]) -> Decision:
    """The decision that answers a question in DSPy's form.

    Args:
        question: ``type`` (noul, score or choice), ``instructions``, and ``criteria``, which a noul
            may lack.
    """
    criteria = question.get("criteria")
    instructions = _words(question["instructions"])
    if question["type"] == "noul":
        named = {key.capitalize(): text for key, text in (criteria or {}).items()}
        return Decision(
            bool,
            _with_criteria(instructions, named),
            ("True", "False"),
            lambda p: {"noul": p["True"]},
        )
    if question["type"] == "score":
        criteria = {str(level): text for level, text in enumerate(criteria or ())}
    keys = tuple(criteria or ())
    return Decision(
        Literal[keys],
        _with_criteria(instructions, criteria or {}),
        keys,
        lambda p: {"probabilities": dict(p), "confidence": confidence(p)},
    )


def _with_examples(
    signature: type[Signature], decisions: Mapping[str, Decision]
) -> tuple[type[Signature], list[dict[str, Any]]]:
    """Take the demonstrations out of the instructions, where DSPy puts those of evidence as JSON.

    They are the last line, under a heading. A small model needs demonstrations as turns of the
    conversation.
    """
    before, _, listed = signature.instructions.rpartition("\n")
    instructions, blank, _heading = before.rpartition("\n\n")
    try:
        examples = json.loads(listed)
    except ValueError:
        return signature, []
    if not (blank and isinstance(examples, list) and examples):
        return signature, []
    if not all(
        isinstance(each, dict) and each.keys() <= signature.fields.keys() for each in examples
    ):
        return signature, []
    return signature.with_instructions(instructions), labelled(examples, decisions)


def labelled(
    examples: list[dict[str, Any]], decisions: Mapping[str, Decision]
) -> list[dict[str, Any]]:
    """Demonstrations with each decision as one key. DSPy has an object with more."""
    for example in examples:
        for name in decisions.keys() & example.keys():
            label = example[name]
            example[name] = label.get("level") if isinstance(label, dict) else label
            if isinstance(label, dict) and example[name] is None:
                example[name] = label.get("value")
    return examples


def _pick(name: str, field: FieldInfo) -> Decision | None:
    """A field of a plain type with few values. Its value is the likeliest allowed one."""
    annotation: Any = field.annotation
    values = [True, False] if annotation is bool else allowed_values(annotation)
    values = [value for value in values if _is_allowed(name, value, field)]
    by_key = {str(value): value for value in values}
    if not by_key or len(by_key) < len(values):
        return None
    if isinstance(annotation, enum.EnumMeta):
        by_key = {key: annotation(value) for key, value in by_key.items()}

    def likeliest(probabilities: Distribution) -> Any:
        return by_key[max(probabilities, key=lambda key: probabilities[key])]

    return Decision(annotation, _described(field), tuple(by_key), likeliest)


def _is_allowed(name: str, value: Any, field: FieldInfo) -> bool:
    annotation: Any = field.annotation
    member = annotation(value) if isinstance(annotation, enum.EnumMeta) else value
    try:
        constrained_value(name, member, field)
    except Misfit:
        return False
    return True


def _described(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    assert isinstance(extra, dict)  # dspy's fields always keep their description there
    return str(extra.get("desc") or "")


def _with_criteria(instructions: str, criteria: Mapping[str, Any]) -> str:
    parts = [f"{key}: {_words(text)}" for key, text in criteria.items() if text]
    return f"{instructions} ({'; '.join(parts)})" if parts else instructions


def _words(text: Any) -> str:
    return text.strip() if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
