"""What surrounds llama.cpp's converter; tests/conversions has the conversions themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

import pyllama
from adapter.errors import ConversionError
from adapter.models import conversion
from adapter.models.conversion import convert


@pytest.fixture
def folder(tmp_path) -> Path:
    """What looks like a model in Hugging Face's format."""
    made = tmp_path / "my-model"
    made.mkdir()
    (made / "config.json").write_text("{}")
    (made / "model.safetensors").write_bytes(b"weights")
    return made


@pytest.fixture
def converter(monkeypatch, tmp_path, tiny_model_path):
    """Have a program stand in for the converter, which needs torch."""
    monkeypatch.setattr(conversion, "_is_installed", lambda _name: True)

    def stand_in(body: str) -> None:
        script = tmp_path / "converter.py"
        script.write_text(
            "import os, shutil, sys\n"
            "out = sys.argv[sys.argv.index('--outfile') + 1]\n"
            f"model = {str(tiny_model_path)!r}\n{body}\n"
        )
        monkeypatch.setattr(pyllama, "converter_script", lambda _kind="model": script)

    return stand_in


def test_the_converters_of_the_pin_are_in_the_wheel():
    for kind in ("model", "lora"):
        script = pyllama.converter_script(kind)
        assert script.is_file()
        assert (script.parent / "conversion" / "llama.py").is_file()
        assert (script.parent / "gguf-py" / "gguf" / "gguf_writer.py").is_file()
    with pytest.raises(ValueError, match="kind"):
        pyllama.converter_script("none")


def test_what_converting_needs_is_named_with_the_command(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(conversion, "_NEEDED", ("sys", "no_such_torch"))
    with pytest.raises(ConversionError, match=r"needs no_such_torch: pip install '.*\[convert\]'"):
        convert(folder, tmp_path / "x.gguf")


def test_the_file_appears_when_it_is_whole_and_progress_is_reported(folder, converter, tmp_path):
    converter(
        "sys.stderr.write('Writing:  10%|#   |\\rWriting: 100%|####|\\n')\n"
        "assert os.environ['HF_HUB_OFFLINE'] == '1'\n"
        "shutil.copyfile(model, out)"
    )
    done = []
    made = convert(folder, tmp_path / "m-{type}.gguf", report=done.append)
    assert made == tmp_path / "m-F32.gguf"
    assert done == [0.1, 1.0]
    assert [path.name for path in tmp_path.glob(".*")] == []


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("sys.exit('no such architecture')", "no such architecture"),
        ("open(out, 'wb').write(b'GGUF and no more')", "cannot be read"),
        ("pass", "No such file"),
        ("os.kill(os.getpid(), 9)", "-9"),
    ],
)
def test_a_converter_that_fails_leaves_nothing(folder, converter, tmp_path, body, words):
    converter(body)
    with pytest.raises(ConversionError, match=words):
        convert(folder, tmp_path / "m.gguf")
    assert not list(tmp_path.rglob("*.gguf"))
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_ctrl_c_ends_the_converter_and_leaves_nothing(folder, converter, tmp_path):
    converter(
        "import time\n"
        "open(out, 'wb').write(b'half')\n"
        "sys.stderr.write('Writing:  50%|##  |\\n'); sys.stderr.flush()\n"
        "time.sleep(600)"
    )

    def interrupt(_done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(folder, tmp_path / "m.gguf", report=interrupt)
    assert not list(tmp_path.rglob("*.gguf"))


def test_code_that_comes_with_a_model_runs_only_when_it_is_allowed(folder, converter, tmp_path):
    converter("shutil.copyfile(model, out)")
    (folder / "modeling_evil.py").write_text("raise SystemExit")
    with pytest.raises(ConversionError, match=r"modeling_evil\.py.*--trust-remote-code"):
        convert(folder, tmp_path / "m.gguf")
    assert convert(folder, tmp_path / "m.gguf", trust_remote_code=True).is_file()


def test_a_folder_that_is_no_model_is_refused(folder, converter, tmp_path):
    converter("shutil.copyfile(model, out)")
    with pytest.raises(ConversionError, match="no folder"):
        convert(tmp_path / "none", tmp_path / "m.gguf")
    with pytest.raises(ConversionError, match=r"adapter_config\.json"):
        convert(folder, tmp_path / "m.gguf", lora_base=folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConversionError, match="no weights"):
        convert(folder, tmp_path / "m.gguf")
    (folder / "config.json").unlink()
    with pytest.raises(ConversionError, match=r"config\.json"):
        convert(folder, tmp_path / "m.gguf")
