"""What a request becomes for the model: tools, schemas, grammars and reasoning."""

from __future__ import annotations

import json

import pytest
from chats import TOOLS_AND_THINKING
from dspy.lm15 import (
    BuiltinTool,
    Config,
    FunctionTool,
    Message,
    Reasoning,
    Request,
    ToolChoice,
    UnsupportedFeatureError,
)
from fake_generator import fake_model

from adapter.engine.prompt import build_prompt
from adapter.errors import InvalidParameterError
from adapter.generation.sampling import ReasoningBudget

SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
ADD = FunctionTool("add", "Adds.", {"type": "object", "properties": {"a": {"type": "integer"}}})
BEGIN = "{{- '<|im_start|>assistant\n' }}"
SUBMIT = FunctionTool("submit", None, {"type": "object", "properties": {}})


def prompt_of(model, *, tools=(), grammar=None, **config):
    request = Request("m", (Message.user("Hi"),), tools=tools, config=Config(**config))
    return build_prompt(request, model, grammar)


@pytest.fixture
def plain():
    return fake_model("x")


@pytest.fixture
def able():
    """A model that was trained to reason and to call functions."""
    return fake_model("x", source=TOOLS_AND_THINKING)


def text(prompt):
    return "".join(map(chr, prompt.tokens))


def test_a_plain_conversation_has_no_grammar_and_no_parser(plain):
    prompt = prompt_of(plain)
    assert text(prompt) == "User: Hi\nAssistant:"
    assert (prompt.constraint, prompt.parser, prompt.adaptations) == (None, None, ())


# Forms of answer


def test_a_schema_becomes_a_grammar_of_the_whole_answer(plain):
    prompt = prompt_of(plain, response_format={"type": "json_schema", "schema": SCHEMA})
    assert r'"\"age\""' in prompt.constraint.gbnf
    assert prompt.constraint.prefix == ()
    assert prompt.parser is None


def test_any_object_will_do(plain):
    prompt = prompt_of(plain, response_format={"type": "json_object"})
    assert prompt.constraint.gbnf.startswith('root ::= answer\nanswer ::= "{"')


def test_a_schema_that_no_grammar_can_express_is_refused(plain):
    schema = {"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}}
    with pytest.raises(InvalidParameterError, match=r"response_format.*nowhere"):
        prompt_of(plain, response_format={"type": "json_schema", "schema": schema})


AGE = {"type": "integer", "minimum": 5, "maximum": 3}
NO_AGE = {"type": "object", "properties": {"age": AGE}, "required": ["age"]}


def test_a_schema_that_nothing_fits_is_refused_with_the_part_that_contradicts_itself(plain):
    with pytest.raises(InvalidParameterError, match="minimum 5 and maximum 3 of age contradict"):
        prompt_of(plain, response_format={"type": "json_schema", "schema": NO_AGE})


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_a_function_that_can_never_be_called_is_refused(able, mode):
    tools = (ADD, FunctionTool("grow", None, NO_AGE))
    with pytest.raises(InvalidParameterError, match=r"tools\['grow'\].*minimum 5 and maximum 3 of"):
        prompt_of(able, tools=tools, tool_choice=ToolChoice(mode))
    assert prompt_of(able, tools=tools, tool_choice=ToolChoice(mode, allowed=("add",)))


def test_a_pattern_that_a_grammar_cannot_express_is_reported(plain):
    schema = {"type": "string", "pattern": "^(?=a).*$"}
    prompt = prompt_of(plain, response_format={"type": "json_schema", "schema": schema})
    [adaptation] = prompt.adaptations
    assert (adaptation.field, adaptation.action) == ("config.response_format.schema", "dropped")
    assert adaptation.asked == ("pattern ^(?=a).*$ (assert)",)


def test_a_grammar_of_ones_own(plain):
    assert prompt_of(plain, grammar='root ::= "yes"').constraint.gbnf == 'root ::= "yes"'
    with pytest.raises(InvalidParameterError, match=r"grammar.*line 1"):
        prompt_of(plain, grammar="root ::= (")
    with pytest.raises(InvalidParameterError, match="response_format"):
        prompt_of(plain, grammar='root ::= "a"', response_format={"type": "json_object"})


def test_a_model_that_reasons_may_do_so_before_its_json(able):
    prompt = prompt_of(able, response_format={"type": "json_schema", "schema": SCHEMA})
    assert prompt.parser.parse('<think>\nhm\n</think>\n\n{"age": 3}').content == '{"age": 3}'
    assert "age" in prompt.constraint.gbnf


# Functions


def test_tools_are_shown_to_the_model_and_bound_by_a_grammar(able):
    prompt = prompt_of(able, tools=(ADD, SUBMIT))
    described = text(prompt).split("# Tools\n")[1].splitlines()
    assert json.loads(described[0])["function"] == {
        "name": "add",
        "description": "Adds.",
        "parameters": ADD.parameters,
    }
    assert json.loads(described[1])["function"]["name"] == "submit"
    assert prompt.constraint.trigger_patterns or prompt.constraint.trigger_tokens
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    assert prompt.parser.parse(call).tool_calls[0].name == "add"


def test_a_call_can_be_required(able):
    prompt = prompt_of(able, tools=(ADD,), tool_choice=ToolChoice("required"))
    assert prompt.constraint.trigger_patterns == prompt.constraint.trigger_tokens == ()


def test_only_allowed_tools_are_shown(able):
    choice = ToolChoice("required", allowed=("submit",))
    prompt = prompt_of(able, tools=(ADD, SUBMIT), tool_choice=choice)
    assert "submit" in text(prompt)
    assert "add" not in text(prompt)
    assert "add" not in prompt.constraint.gbnf


def test_tools_need_a_template_with_a_place_for_them(plain):
    with pytest.raises(UnsupportedFeatureError, match="trained to call functions") as caught:
        prompt_of(plain, tools=(ADD,))
    assert caught.value.feature == "tools"


def test_a_providers_own_tools_are_refused(able):
    with pytest.raises(UnsupportedFeatureError, match="web_search"):
        prompt_of(able, tools=(BuiltinTool("web_search"),))


def test_a_call_cannot_be_required_without_tools(able):
    with pytest.raises(UnsupportedFeatureError) as caught:
        prompt_of(able, tool_choice=ToolChoice("required"))
    assert caught.value.feature == "config.tool_choice"


# Reasoning


def test_reasoning_can_be_switched_off(able):
    assert text(prompt_of(able)).endswith("assistant\n")
    prompt = prompt_of(able, reasoning=Reasoning("off"))
    assert text(prompt).endswith("<think>\n\n</think>\n\n")
    assert prompt.adaptations == ()


def test_levels_that_the_template_does_not_have_are_reported(able):
    [adaptation] = prompt_of(able, reasoning=Reasoning("high")).adaptations
    assert (adaptation.field, adaptation.action) == ("config.reasoning.effort", "substituted")
    assert (adaptation.asked, adaptation.applied) == ("high", "on")


def test_levels_that_the_template_has_reach_it():
    source = TOOLS_AND_THINKING + "{{- reasoning_effort | default('') }}"
    model = fake_model("x", source=source)
    assert model.capabilities["supports_reasoning_effort"]
    prompt = prompt_of(model, reasoning=Reasoning("low"))
    assert model.options[-1]["chat_template_kwargs"] == {"reasoning_effort": "low"}
    assert prompt.adaptations == ()


def test_a_budget_counts_between_the_templates_tags(able):
    prompt = prompt_of(able, reasoning=Reasoning("low", thinking_budget=50))
    assert prompt.reasoning_budget == ReasoningBudget(
        able.answer_tokens("<think>"), (able.answer_tokens("</think>"),), 50
    )
    assert [a.field for a in prompt.adaptations] == ["config.reasoning.effort"]


def test_a_budget_through_an_adapters_settings(able):
    extensions = {"metadata": {"llamacpp": {"reasoning_budget_tokens": 7}}}
    assert prompt_of(able, extensions=extensions).reasoning_budget.n_tokens == 7


def test_a_budget_counts_at_once_where_the_prompt_has_begun_the_reasoning():
    model = fake_model("x", source=TOOLS_AND_THINKING.replace(BEGIN, BEGIN + "{{- '<think>' }}"))
    prompt = prompt_of(model, reasoning=Reasoning("low", thinking_budget=50))
    assert text(prompt).endswith("<think>")
    assert prompt.reasoning_budget.started


def test_without_reasoning_there_is_nothing_to_count(able, plain):
    assert prompt_of(able, reasoning=Reasoning("off")).reasoning_budget is None
    assert prompt_of(able).reasoning_budget is None
    prompt = prompt_of(plain, reasoning=Reasoning("low", thinking_budget=5))
    assert prompt.reasoning_budget is None
    assert [a.field for a in prompt.adaptations] == ["config.reasoning"]


@pytest.mark.parametrize(("effort", "action"), [("off", "satisfied"), ("low", "dropped")])
def test_a_model_that_does_not_reason(plain, effort, action):
    [adaptation] = prompt_of(plain, reasoning=Reasoning(effort)).adaptations
    assert (adaptation.field, adaptation.action) == ("config.reasoning", action)
