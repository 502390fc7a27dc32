"""A chat template of the user's in place of the model's own."""

from __future__ import annotations

import dspy
import pytest

from adapter.engine.config import LlamaCppConfig
from adapter.errors import ConfigurationError, ModelNotFoundError
from adapter.models.pool import ModelPool
from adapter.signatures.llama_cpp_adapter import LlamaCppAdapter

BRIEF = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
CONVERSATION = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def folder(tiny_model_path, write_tiny_model, tmp_path):
    (tmp_path / "a.gguf").hardlink_to(tiny_model_path)
    (tmp_path / "plain.gguf").hardlink_to(write_tiny_model(chat_template=None))
    return tmp_path


@pytest.mark.parametrize("form", ["text", "path", "name of a path"])
def test_a_template_is_used_for_all_models_of_a_pool(folder, form):
    path = folder / "brief.jinja"
    path.write_text(BRIEF)
    template = {"text": BRIEF, "path": path, "name of a path": str(path)}[form]
    with ModelPool(folder, context_length=64, chat_template=template) as pool:
        for name in ("a", "plain"):
            loaded = pool.load_model(name)
            assert loaded.render(CONVERSATION).prompt == "<user>Hi<assistant>"
            assert loaded.turn_stops == ()


def test_a_template_for_one_model_is_part_of_its_name(folder):
    def names(**settings):
        with ModelPool(folder, context_length=64, aliases={"b": "a"}, **settings) as pool:
            return [
                LlamaCppAdapter.from_loaded_model(
                    pool.load_model(name), LlamaCppConfig(name)
                ).lm.model
                for name in ("a", "plain")
            ]

    own, plain = names()
    first, same = names(chat_template={"b": BRIEF})
    other, _ = names(chat_template={"a": f"{BRIEF} "})
    assert len({own, first, other}) == 3
    assert same == plain
    assert first == names(chat_template={"a": BRIEF})[0]


def test_a_model_keeps_its_template_when_it_is_loaded_again(folder):
    path = folder / "brief.jinja"
    path.write_text(BRIEF)
    with ModelPool(folder, context_length=64, max_models=1, chat_template={"a": path}) as pool:
        loaded = pool.load_model("a")
        path.write_text("other {{ messages }}")
        pool.load_model("plain")
        assert loaded.render(CONVERSATION).prompt == "<user>Hi<assistant>"


def test_what_a_model_can_do_is_found_on_the_template(folder):
    thinking = BRIEF + "{% if not enable_thinking %}<think></think>{% else %}<think>{% endif %}"
    with ModelPool(folder, context_length=64, chat_template=thinking) as pool:
        loaded = pool.load_model("a")
        assert loaded.capabilities["supports_thinking"]
        assert loaded.reads("enable_thinking")
        assert not loaded.reads("thinking_budget")


@pytest.mark.parametrize(
    ("template", "match"),
    [
        ("{% for %}", "cannot be used"),
        ("nowhere.jinja", "nowhere.jinja"),
        ("", "chat_template"),
        (3, "chat_template"),
        ("{{ messages }}\0", "chat_template"),
    ],
)
def test_what_is_no_template_is_refused_when_the_pool_is_made(folder, template, match):
    with pytest.raises(ConfigurationError, match=match):
        ModelPool(folder, chat_template=template)


def test_files_that_are_no_templates_are_refused(folder):
    (folder / "large.jinja").write_bytes(b"x" * (2**20 + 1))
    with pytest.raises(ConfigurationError, match="1 MiB"):
        ModelPool(folder, chat_template=folder / "large.jinja")
    (folder / "latin.jinja").write_bytes(b"\xff{{ messages }}")
    with pytest.raises(ConfigurationError, match=r"latin\.jinja"):
        ModelPool(folder, chat_template=folder / "latin.jinja")


def test_a_template_needs_its_model(folder):
    with pytest.raises(ModelNotFoundError):
        ModelPool(folder, chat_template={"nobody": BRIEF})
    with pytest.raises(ConfigurationError, match="two templates for one model"):
        ModelPool(folder, aliases={"b": "a"}, chat_template={"a": BRIEF, "b": BRIEF + "."})


def test_a_program_is_answered_by_it(folder):
    with ModelPool(folder, context_length=256, chat_template=BRIEF) as pool:
        loaded = pool.load_model("plain")
        adapter = LlamaCppAdapter.from_loaded_model(loaded, LlamaCppConfig("plain", seed=1))
        with dspy.context(lm=adapter.lm, adapter=adapter):
            answer = dspy.Predict("question -> yes: bool")(question="Hi")
        assert answer.yes in (True, False)
