from __future__ import annotations

import json
from dataclasses import replace

import pytest

import pyllama
from adapter.models.hardware import HardwareManager


def test_show_says_what_a_model_is_and_needs(run, tiny_model_path):
    result = run("show", tiny_model_path, env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    for words in ("architecture:     llama", "trained context:  512", "chat template:", "f32"):
        assert words in result.stdout
    assert "it runs on the CPU" in result.stdout


def test_show_as_json_adds_up(run, tiny_model_path):
    facts = json.loads(run("show", tiny_model_path, "--json").stdout)
    assert facts["size"] == tiny_model_path.stat().st_size
    sizes = sum(kind["size"] for kind in facts["tensor_types"].values())
    assert sizes == 4 * facts["n_params"]
    assert facts["bits_per_weight"] == 32
    assert [entry["n_ctx"] for entry in facts["memory"]] == [512]
    assert facts["memory"][0]["memories"]["host"]["model"] >= sizes
    assert facts["placement"]["fits"]
    assert facts["metadata"]["general.architecture"] == "llama"


def test_show_writes_the_template_or_the_metadata_alone(run, tiny_model_path, write_tiny_model):
    facts = json.loads(run("show", tiny_model_path, "--json").stdout)
    assert run("show", tiny_model_path, "--template").stdout == facts["chat_template"] + "\n"
    assert "general.name = synthetic\n" in run("show", tiny_model_path, "--metadata").stdout
    metadata = json.loads(run("show", tiny_model_path, "--metadata", "--json").stdout)
    assert metadata == facts["metadata"]
    plain = write_tiny_model(chat_template=None)
    assert "no chat template" in run("show", plain).stderr


def test_metadata_cannot_steer_the_terminal(run, write_tiny_model):
    path = write_tiny_model(metadata={"general.license": "\x1b[2Jfree\x07"})
    for option in ((), ("--metadata",), ("--json",)):
        stdout = run("show", path, *option).stdout
        assert "\x1b" not in stdout
        assert "\x07" not in stdout


@pytest.mark.parametrize(
    ("file_type", "variant", "expected"),
    [
        ("Q4_1", "zen4", ["Q4_0", "Q4_K_M"]),
        ("Q5_1", "haswell", ["Q5_K_M"]),
        ("Q4_0", "zen4", []),
        ("Q4_1", "sse42", []),
        ("Q4_1", None, []),
    ],
)
def test_show_names_types_that_are_faster_here(
    run, tiny_model_path, tmp_path, monkeypatch, file_type, variant, expected
):
    monkeypatch.setattr(pyllama, "cpu_variant", lambda: variant)
    path = tmp_path / "model.gguf"
    pyllama.quantize(tiny_model_path, path, file_type)
    assert json.loads(run("show", path, "--json").stdout)["faster_types"] == expected
    shown = run("show", path)
    assert (f"on this CPU {' or '.join(expected)}" in shown.stderr) is bool(expected)


def test_fit_says_what_fits_for_each_length(run, tiny_model_path):
    result = run("fit", tiny_model_path, "-c", "128", "-c", "256", "--json")
    assert result.exit_code == 0, result.output
    placements = json.loads(result.stdout)
    assert [placement["context_length"] for placement in placements] == [128, 256]
    assert all(placement["fits"] for placement in placements)
    table = run("fit", tiny_model_path, env={"COLUMNS": "80"}).stdout
    assert "512" in table
    assert max(map(len, table.partition("it runs")[0].splitlines())) <= 80


def test_each_memory_has_a_line_and_full_requests_are_counted(run, tiny_model_path, monkeypatch):
    plan = HardwareManager.plan

    def with_a_gpu(manager, path, **options):
        return replace(
            plan(manager, path, **options),
            memory={"host": 325_300_000, "CUDA0": 2_310_000_000},
            free={"host": 134_150_000_000, "CUDA0": 84_470_000_000},
            n_contexts=32,
            n_sequences=64,
        )

    monkeypatch.setattr(HardwareManager, "plan", with_a_gpu)
    table = run("fit", tiny_model_path, env={"COLUMNS": "80"}).stdout
    assert "host 134.15 GB" in table
    assert "CUDA0 84.47 GB" in table
    assert " 32 " in table
    assert " 64 " not in table
    shown = run("show", tiny_model_path).stdout
    assert "with 32 requests of 512 tokens at once, or up to 64 shorter ones, it fits: " in shown


@pytest.mark.parametrize("command", ["show", "fit"])
def test_what_is_no_model_is_one_line(run, command, tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF and no more")
    for name in (tmp_path / "bad.gguf", tmp_path / "none.gguf", "nothing-of-that-name"):
        result = run(command, name)
        assert result.exit_code == 1
        assert result.stderr.startswith("error: ")
        assert "Traceback" not in result.output
