"""Judgments: properties of a JSON schema with few possible answers, whose probabilities are
measured.

A judgment is a boolean, one of some strings, or one of the integers from 0 on. Each of its keys is
placed in the answer as a line ``name: key``. The likelihood of a key is that of its tokens and of
the answer ending there. docs/probabilities.md has the formulas.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from dspy.lm15 import (
    Adaptation,
    DataPart,
    Message,
    Request,
    Response,
    TextPart,
    ThinkingPart,
    UnsupportedFeatureError,
    Usage,
)

from adapter.engine.call_settings import asked_llamacpp
from adapter.engine.config import SETTINGS
from adapter.engine.lm15_errors import PROVIDER
from adapter.engine.messages import rendered_by, template_messages
from adapter.errors import InferenceError
from adapter.generation.scoring import ScoringRequest, ScoringResult
from adapter.models.template_variables import SETTING

if TYPE_CHECKING:
    import pyllama
    from adapter.models.loaded import LoadedModel

METHOD = "candidate_sequence_likelihood"
"""lm15's name for how the probabilities are measured."""

_USED = frozenset({"response_format", "grammar", SETTING})
"""Settings that have no effect if nothing is sampled, or that are refused."""


@dataclass(frozen=True)
class Judgment:
    """A property that is answered by one of its keys.

    Attributes:
        values: each key, as it is written, with the JSON value that it stands for.
        descriptions: what the schema says about a key, if it says anything.
        instruction: what the schema says about the property, or its name.
    """

    name: str
    values: Mapping[str, str | int | bool]
    descriptions: Mapping[str, str]
    instruction: str

    def question(self) -> str:
        """Return what the model is asked, and the form of its answer."""
        lines = [self.instruction, "Choose one:"]
        for key in self.values:
            description = self.descriptions.get(key)
            lines.append(f"- {key}: {description}" if description else f"- {key}")
        lines.append(f"Answer in this form:\n{self.name}: (one of: {', '.join(self.values)})")
        return "\n".join(lines)


def judgments_in(schema: Mapping[str, Any]) -> dict[str, Judgment]:
    """Return the judgments among a schema's top-level properties, by name."""
    properties = schema.get("properties") if schema.get("type") in (None, "object") else None
    if not isinstance(properties, dict):
        return {}
    found = {name: _judgment(name, declared) for name, declared in properties.items()}
    return {name: judgment for name, judgment in found.items() if judgment is not None}


def _judgment(name: str, declared: Any) -> Judgment | None:
    if not isinstance(declared, dict):
        return None
    branches: list[Any] = declared.get("anyOf") or []
    kind = declared.get("type")
    if kind == "boolean" and not {"anyOf", "enum", "const"} & declared.keys():
        options: list[Any] = [True, False]
    elif branches and "enum" not in declared:
        if not all(isinstance(branch, dict) and "const" in branch for branch in branches):
            return None
        options = [branch["const"] for branch in branches]
    else:
        options = declared.get("enum") or []
    are_texts = all(isinstance(option, str) and option for option in options)
    are_levels = all(type(option) is int for option in options)
    if not options or len(set(options)) < len(options):
        return None
    if kind != "boolean" and not (
        (are_texts and kind in (None, "string"))
        or (are_levels and kind in (None, "integer") and options == list(range(len(options))))
    ):
        return None
    descriptions = {}
    for option, branch in zip(options, branches, strict=False):
        texts = [branch.get(part) for part in ("title", "description")]
        if any(texts):
            descriptions[str(option)] = ": ".join(str(part) for part in texts if part)
    return Judgment(
        name,
        {str(option).lower() if kind == "boolean" else str(option): option for option in options},
        descriptions,
        declared.get("description") or name,
    )


def judgments_to_measure(
    request: Request, loaded: LoadedModel, *, streaming: bool = False
) -> tuple[dict[str, Judgment], tuple[Adaptation, ...]]:
    """Return the judgments whose probabilities a request asks for and can have.

    If it asks for them and cannot have them, there is an Adaptation with the reason.

    Raises:
        UnsupportedFeatureError: lm15's; the request requires probabilities and cannot have them.
    """
    policy = request.config.probabilities
    if policy in (None, "off"):
        return {}, ()
    form = request.config.response_format
    schema: Any = form.get("schema") if form and form["type"] == "json_schema" else None
    found = judgments_in(schema) if isinstance(schema, dict) else {}
    choice = request.config.tool_choice
    reason = None
    if not found:
        reason = (
            "response_format is no json_schema with a top-level property that is a boolean, an "
            "enum of strings, or of the integers from 0 on"
        )
    elif request.tools and not (choice and choice.mode == "none"):
        reason = "the answer may be a tool call, which has no probability of this kind"
    elif streaming:
        reason = "a measured answer comes at once and not as a stream"
    elif not loaded.turn_ends:
        reason = f"{loaded.name!r} has no token that ends an answer"
    if reason is None:
        return found, ()
    if policy == "required":
        raise UnsupportedFeatureError(
            f"the probabilities that config.probabilities='required' asks for cannot be measured: "
            f"{reason}",
            feature="config.probabilities",
            provider=PROVIDER,
        )
    return {}, (Adaptation("config.probabilities", "dropped", reason, asked=policy),)


def unmeasured(request: Request, judgments: Mapping[str, Judgment]) -> Request | None:
    """Return what is left to generate: the request without the judgments, or None for nothing."""
    form = request.config.response_format
    assert form is not None
    schema = form["schema"]
    properties = {
        name: declared for name, declared in schema["properties"].items() if name not in judgments
    }
    if not properties:
        return None
    schema = {**schema, "properties": properties}
    if "required" in schema:
        schema["required"] = [name for name in schema["required"] if name not in judgments]
    config = replace(request.config, response_format={**form, "schema": schema}, probabilities=None)
    return replace(request, config=config)


def unused_settings(request: Request) -> tuple[Adaptation, ...]:
    """Return the settings that have no effect if a request asks only for judgments."""
    config = request.config
    unused = [name for name in SETTINGS if name not in _USED]
    asked = {f"config.{name}": getattr(config, name, None) for name in unused}
    asked["config.extensions.logit_bias"] = (config.extensions or {}).get("logit_bias")
    llamacpp = asked_llamacpp(config)
    asked |= {f"metadata['llamacpp'][{name!r}]": llamacpp.get(name) for name in unused}
    adaptations = [
        Adaptation(field, "dropped", "nothing is sampled: the logits are measured", asked=value)
        for field, value in asked.items()
        if value not in (None, (), {})
    ]
    if config.reasoning is not None and not config.reasoning.is_off:
        reason = "judgments are measured without reasoning before them"
        effort = config.reasoning.effort
        adaptations.append(Adaptation("config.reasoning", "dropped", reason, asked=effort))
    return tuple(adaptations)


@dataclass(frozen=True)
class PlacedJudgments:
    """The keys of all judgments as continuations of one prompt.

    Attributes:
        begins: for each judgment, how many tokens of its continuations come before the key.
    """

    request: ScoringRequest
    judgments: tuple[Judgment, ...]
    begins: tuple[int, ...]


def place(
    request: Request,
    loaded: LoadedModel,
    judgments: Mapping[str, Judgment],
    options: Mapping[str, Any],
) -> PlacedJudgments:
    """Place the keys of judgments in the answer to a conversation.

    If the conversation ends with an assistant's message, the keys come on a line after it.
    Otherwise the question is added first.

    Args:
        options: the chat template's.
    """
    messages = template_messages(request)
    unfinished: dict[str, Any] | None = None
    if messages and messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1]:
        unfinished = messages.pop()
    stems: list[list[int]] = []
    paths: list[list[list[int]]] = []
    for judgment in judgments.values():
        stem = _stem(messages, unfinished, judgment, loaded, options)
        stems.append(loaded.tokenize(stem))
        paths.append([loaded.tokenize(_with_text(stem, f" {key}")) for key in judgment.values])
    # The prompt ends where the keys begin to differ. A key may change the token before it.
    owned = [_n_common([stem, *keys]) for stem, keys in zip(stems, paths, strict=True)]
    n_prompt = min(*owned, _n_common(stems)) if len(stems) > 1 else owned[0]
    continuations = tuple(tuple(path[n_prompt:]) for keys in paths for path in keys)
    return PlacedJudgments(
        ScoringRequest(tuple(stems[0][:n_prompt]), continuations, loaded.turn_ends),
        tuple(judgments.values()),
        tuple(count - n_prompt for count in owned),
    )


def _stem(
    messages: list[dict[str, Any]],
    unfinished: dict[str, Any] | None,
    judgment: Judgment,
    loaded: LoadedModel,
    options: Mapping[str, Any],
) -> pyllama.RenderedChat:
    """The prompt up to a judgment's key, without the space before it."""
    if unfinished is None:
        messages = _asked(messages, judgment.question())
        unfinished = {"role": "assistant", "content": ""}
    content = unfinished["content"]
    separator = "\n" if content and not content.endswith("\n") else ""
    last = {**unfinished, "content": f"{content}{separator}{judgment.name}:"}
    thinks = loaded.capabilities["supports_thinking"]
    rendered = rendered_by(
        loaded,
        [*messages, last],
        continue_final_message="content",
        **{**options, **({"enable_thinking": False} if thinks else {})},
    )
    before = rendered.prompt.removesuffix(last["content"])
    if not before.endswith(":"):
        return rendered
    # If a turn begins with a name, as in "Assistant:", a space follows it.
    kept = tuple(place for place in rendered.literal if place[1] <= len(before))
    return _with_text(replace(rendered, prompt=before, literal=kept), f" {last['content']}")


def _with_text(rendered: pyllama.RenderedChat, text: str) -> pyllama.RenderedChat:
    """The prompt, followed by text that is not the template's."""
    begin = len(rendered.prompt)
    places = (*rendered.literal, (begin, begin + len(text)))
    return replace(rendered, prompt=rendered.prompt + text, literal=places)


def _asked(messages: list[dict[str, Any]], question: str) -> list[dict[str, Any]]:
    """A conversation with a question at its end."""
    if messages and messages[-1]["role"] == "user":
        # Many templates require alternating roles.
        content = f"{messages[-1]['content']}\n\n{question}"
        return [*messages[:-1], {**messages[-1], "content": content}]
    return [*messages, {"role": "user", "content": question}]


def _n_common(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens all sequences begin with."""
    return sum(
        1 for _ in takewhile(lambda step: len(set(step)) == 1, zip(*sequences, strict=False))
    )


@dataclass(frozen=True)
class Measured:
    """The result of measuring the judgments, by their names.

    Attributes:
        value: the likeliest key of each, as a JSON value.
        probabilities: of each key; they add up to 1.
        coverage: how likely the answer was one of the keys at all, 0 to 1.
    """

    value: dict[str, str | int | bool]
    probabilities: dict[str, dict[str, float]]
    coverage: dict[str, float]


def measured(placement: PlacedJudgments, result: ScoringResult) -> Measured:
    """Read the scores of the keys.

    Raises:
        InferenceError: no key of a judgment is possible.
    """
    found = Measured({}, {}, {})
    scores = iter(result.scores)
    for judgment, begin in zip(placement.judgments, placement.begins, strict=True):
        likelihoods = {key: next(scores).total(begin) for key in judgment.values}
        best = max(likelihoods.values())
        if not math.isfinite(best):
            raise InferenceError(
                f"no key of {judgment.name!r} has a likelihood: {likelihoods}; the model's logits "
                "are no numbers"
            )
        weights = {key: math.exp(value - best) for key, value in likelihoods.items()}
        total = math.fsum(weights.values())
        distribution = {key: weight / total for key, weight in weights.items()}
        found.probabilities[judgment.name] = distribution
        found.coverage[judgment.name] = min(1.0, math.exp(best) * total)
        found.value[judgment.name] = judgment.values[
            max(distribution, key=lambda key: distribution[key])
        ]
    return found


def judgment_response(
    request: Request,
    found: Measured,
    result: ScoringResult,
    written: Response | None,
    provider_data: dict[str, Any],
    adaptations: tuple[Adaptation, ...],
) -> Response:
    """The response to a request for judgments: a DataPart, and the model's reasoning if there is
    any.

    Measuring samples nothing, so the tokens of the keys count as input.

    Args:
        written: the model's answer about the other properties. Its tokens count as well.
    """
    value: dict[str, Any] = {**found.value}
    parts: list[ThinkingPart | DataPart] = []
    usage = Usage(
        input_tokens=result.prompt_tokens + result.n_computed,
        output_tokens=0,
        cache_read_tokens=result.cache_read_tokens,
    )
    if written is not None:
        text = "".join(part.text for part in written.message.parts_of(TextPart))
        value = _in_order(request, {**json.loads(text), **value})
        parts += written.message.parts_of(ThinkingPart)
        usage = Usage(
            input_tokens=(usage.input_tokens or 0) + (written.usage.input_tokens or 0),
            output_tokens=written.usage.output_tokens,
            cache_read_tokens=result.cache_read_tokens + (written.usage.cache_read_tokens or 0),
            reasoning_tokens=written.usage.reasoning_tokens,
        )
    parts.append(DataPart(value, found.probabilities, METHOD))
    return Response(
        id=None,
        model=request.model,
        message=Message("assistant", tuple(parts)),
        finish_reason="stop",
        usage=usage,
        logprobs=None if written is None else written.logprobs,
        logprobs_complete=written is None or written.logprobs_complete,
        provider_data={**provider_data, "coverage": found.coverage},
        adaptations=adaptations,
    )


def _in_order(request: Request, value: dict[str, Any]) -> dict[str, Any]:
    """An object with its properties in the order of the schema."""
    form = request.config.response_format
    assert form is not None
    declared = [name for name in form["schema"]["properties"] if name in value]
    return {name: value[name] for name in dict.fromkeys([*declared, *value])}
