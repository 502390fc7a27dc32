from __future__ import annotations

import json

import numpy as np
import pytest

from adapter.models import embedded_model


@pytest.fixture(autouse=True)
def own_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(embedded_model, "model_dir", lambda: tmp_path / "own")


def test_the_answer_alone_goes_to_standard_output(run, tiny_model_path):
    first = run("run", tiny_model_path, "hello", "-n", 5, "--seed", 1, "-c", 256)
    assert first.exit_code == 0, first.output
    assert "cut off after 5 tokens" in first.stderr
    facts = json.loads(
        run("run", tiny_model_path, "hello", "-n", 5, "--seed", 1, "-c", 256, "--json").stdout
    )
    assert facts["text"].strip() in first.stdout
    assert facts["completion_tokens"] == 5
    assert facts["finish_reason"] == "length"


def test_standard_input_follows_the_prompt(run, tiny_model_path):
    def prompt_tokens(*arguments, **options):
        result = run("run", tiny_model_path, *arguments, "-n", 1, "-c", 256, "--json", **options)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)["prompt_tokens"]

    piped = prompt_tokens(input="hello")
    assert piped == prompt_tokens("hello")
    assert prompt_tokens("hello", input="hello") > piped
    assert prompt_tokens("hello", "--system", "hello") > piped
    nothing = run("run", tiny_model_path, input=" ")
    assert nothing.exit_code == 2
    assert "no prompt" in nothing.stderr


def test_an_answer_fits_its_schema_or_grammar(run, tiny_model_path, tmp_path):
    schema, grammar = tmp_path / "schema.json", tmp_path / "answer.gbnf"
    schema.write_text(json.dumps({"type": "array", "items": {"type": "boolean"}, "maxItems": 2}))
    grammar.write_text('root ::= "yes" | "no"')
    options = ("-n", 40, "-c", 256)
    answer = run("run", tiny_model_path, "hello", "--schema", schema, *options).stdout
    assert all(isinstance(each, bool) for each in json.loads(answer))
    answer = run("run", tiny_model_path, "hello", "--grammar", grammar, *options).stdout
    assert answer in ("yes\n", "no\n")
    both = run("run", tiny_model_path, "hello", "--schema", schema, "--grammar", grammar)
    assert both.exit_code == 2


@pytest.mark.parametrize("text", ["{", "root ::= nothing", '{"type": 7}'])
@pytest.mark.parametrize("option", ["--schema", "--grammar"])
def test_a_form_that_cannot_be_used_is_one_line(run, tiny_model_path, tmp_path, option, text):
    path = tmp_path / "form"
    path.write_text(text)
    for form in (path, tmp_path / "none"):
        result = run("run", tiny_model_path, "hello", option, form, "-c", 256)
        assert result.exit_code == 1
        assert result.stderr.startswith("error: ")
        assert "Traceback" not in result.output


def test_a_form_that_needs_more_tokens_names_the_option(run, tiny_model_path, tmp_path):
    path = tmp_path / "form"
    path.write_text('root ::= "a long answer that takes many tokens"')
    result = run("run", tiny_model_path, "hello", "--grammar", path, "-c", 256, "--max-tokens", 1)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --max-tokens 1 is too few: it must be at least ")
    assert "metadata" not in result.stderr


def test_an_empty_system_prompt_is_none(run, tiny_model_path):
    with_none, without = (
        run("run", tiny_model_path, "hello", *system, "-c", 256, "-n", 4, "-t", 0)
        for system in (("--system", ""), ())
    )
    assert with_none.exit_code == 0
    assert with_none.stdout == without.stdout


def test_a_prompt_that_is_no_text_is_refused(run, tiny_model_path):
    result = run("run", tiny_model_path, "hello \udcff", "-c", 256)
    assert result.exit_code == 2
    assert "no UTF-8" in result.stderr


def test_a_model_of_a_hub_is_downloaded_when_it_is_first_used(run, hub, tiny_model_path):
    hub.add("owner/repo", {"tiny-F32.gguf": tiny_model_path.read_bytes()})
    for _ in range(2):
        result = run("run", "owner/repo:F32", "hello", "-n", 1, "-c", 256)
        assert result.exit_code == 0, result.output
    assert len(hub.contents_asked_for()) == 1
    unclear = run("run", "owner/none", "hello")
    assert unclear.exit_code == 1
    assert unclear.stderr.startswith("error: ")


def test_texts_become_vectors_of_length_one(run, write_tiny_model):
    path = write_tiny_model(architecture="bert")
    given = run("embed", path, "hello", "world")
    assert given.exit_code == 0, given.output
    vectors = np.array([json.loads(line) for line in given.stdout.splitlines()])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert run("embed", path, input="hello\n\nworld\n").stdout == given.stdout
    plain = run("embed", path, "hello", "--no-normalize").stdout
    assert plain != given.stdout.splitlines()[0]
    for wrong in (run("embed", path, input=""), run("embed", path, "x", "--pooling", "none")):
        assert wrong.exit_code == 2
        assert wrong.stderr.startswith("error: ")


@pytest.mark.parametrize(("kind", "words"), [("bert", "pyllama embed"), ("t5", "not supported")])
@pytest.mark.parametrize("command", ["run", "chat", "perplexity"])
def test_a_model_that_does_not_generate_is_reported_at_once(
    run, write_tiny_model, tmp_path, command, kind, words
):
    path = write_tiny_model(architecture=kind)
    text = tmp_path / "text.txt"
    text.write_text("hello " * 100)
    arguments = {"run": ["hello"], "chat": [], "perplexity": [text]}[command]
    result = run(command, path, *arguments, "-c", 128, input="hello\n")
    assert result.exit_code == 1
    assert words in result.stderr
    assert "Traceback" not in result.output
