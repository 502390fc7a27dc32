from __future__ import annotations

import contextlib
import logging
import os
import threading
from pathlib import PureWindowsPath
from shutil import copyfile

import pytest

import pyllama
from adapter.errors import InvalidModelNameError, ModelFileError, ModelNotFoundError
from adapter.models.files import ModelFolder, _misnamed, _require_inside
from adapter.models.info import unlogged
from adapter.models.parts import parts


@pytest.fixture
def folder(tmp_path, tiny_model_path):
    copyfile(tiny_model_path, tmp_path / "one.gguf")
    (tmp_path / "below").mkdir()
    copyfile(tiny_model_path, tmp_path / "below" / "deep.gguf")
    return tmp_path


@pytest.fixture
def split(folder, write_tiny_model):
    """A model of several files beside the others."""
    first = write_tiny_model(split_max_tensors=6)
    for part in parts(first):
        copyfile(part, folder / part.name.replace(first.stem.rpartition("-00001")[0], "many"))
    return sorted(folder.glob("many-*"))


def listed(folder, **aliases):
    return {info.name: info for info in ModelFolder(folder, aliases).models()}


# Names


def test_a_name_is_a_file_of_the_folder(folder):
    assert ModelFolder(folder, {}).find("one") == folder / "one.gguf"


@pytest.mark.parametrize("name", ["one.gguf", "ONE", "One.GGUF", "many.gguf", "MANY"])
def test_a_name_that_is_nearly_right_is_found_where_one_file_alone_is_meant(folder, split, name):
    expected = folder / "one.gguf" if name.lower().startswith("one") else split[0]
    assert ModelFolder(folder, {}).find(name) == expected


def test_a_file_may_end_in_capitals(folder, tiny_model_path):
    copyfile(tiny_model_path, folder / "Loud.GGUF")
    assert ModelFolder(folder, {}).find("Loud") == folder / "Loud.GGUF"
    assert ModelFolder(folder, {}).find("loud.gguf") == folder / "Loud.GGUF"
    assert listed(folder)["Loud"].architecture == "llama"


def test_where_two_files_could_be_meant_none_is_and_the_error_names_them(folder, tiny_model_path):
    for name in ("Two", "TWO"):
        copyfile(tiny_model_path, folder / f"{name}.gguf")
    if len(list(folder.glob("T*.gguf"))) < 2:
        return  # a file system that knows no case
    with pytest.raises(ModelNotFoundError, match=r"did you mean '(Two|TWO)'"):
        ModelFolder(folder, {}).find("two")


def test_the_error_names_what_is_nearly_called_so(folder):
    with pytest.raises(ModelNotFoundError, match="did you mean 'one'") as caught:
        ModelFolder(folder, {}).find("oone")
    assert caught.value.near == ("one",)
    with pytest.raises(ModelNotFoundError, match=r"does not exist$"):
        ModelFolder(folder, {}).find("xyz")


def test_a_split_model_is_found_by_its_name_and_by_its_first_part(folder, split):
    models = ModelFolder(folder, {})
    assert models.find("many") == split[0]
    assert models.find(split[0].stem) == split[0]
    assert parts(split[0]) == tuple(split)


def test_an_alias_is_another_name_or_a_path_below(folder, split):
    models = ModelFolder(folder, {"small": "one", "deep": "below/deep.gguf", "big": "many"})
    assert models.find("small") == folder / "one.gguf"
    assert models.find("deep") == folder / "below" / "deep.gguf"
    assert models.find("big") == split[0]


def test_an_alias_comes_before_a_file(folder):
    assert ModelFolder(folder, {"one": "below/deep.gguf"}).find("one").name == "deep.gguf"


def test_a_subfolder_is_reached_by_an_alias_alone(folder):
    with pytest.raises(InvalidModelNameError):
        ModelFolder(folder, {}).find("below/deep")


@pytest.mark.parametrize("name", ["", " ", "../one", "a/b", "/etc/passwd", "..", ".one", "a\\b"])
def test_an_alias_must_be_a_plain_name(folder, name):
    with pytest.raises(InvalidModelNameError):
        ModelFolder(folder, {name: "one"})


@pytest.mark.parametrize(
    "target",
    ["../one.gguf", "below/../../one.gguf", "/etc/one.gguf", "C:/one.gguf", "a\\b.gguf", "../one"],
)
def test_an_alias_cannot_lead_out_of_the_folder(folder, target):
    with pytest.raises(InvalidModelNameError) as caught:
        ModelFolder(folder, {"out": target})
    assert caught.value.name == target


def test_an_alias_of_nothing_is_refused_when_it_is_used(folder):
    models = ModelFolder(folder, {"lost": "nothing", "gone": "below/gone.gguf"})
    for name in ("lost", "gone"):
        with pytest.raises(ModelNotFoundError):
            models.find(name)
    assert [info.name for info in models.models()] == ["one"]


def test_a_link_is_followed(folder, tmp_path_factory, tiny_model_path):
    """As in the caches of hubs, where a folder of names links to files named by their hash."""
    elsewhere = tmp_path_factory.mktemp("blobs") / "0f3a"
    copyfile(tiny_model_path, elsewhere)
    (folder / "linked.gguf").symlink_to(elsewhere)
    assert ModelFolder(folder, {}).find("linked") == folder / "linked.gguf"
    assert listed(folder)["linked"].problem is None


# What headers say


def test_a_listing_reports_what_the_headers_say(folder, split, write_tiny_model):
    copyfile(
        write_tiny_model(architecture="mamba", n_ctx_train=99, metadata={"general.file_type": 1}),
        folder / "other.gguf",
    )
    found = listed(folder, small="one", deep="below/deep.gguf")
    assert list(found) == ["deep", "many", "one", "other"]
    one, many, other = found["one"], found["many"], found["other"]
    with pyllama.Model(folder / "one.gguf") as model:
        assert (one.n_params, one.context_length) == (model.n_params, model.n_ctx_train)
    assert (one.architecture, one.quantization, one.problem) == ("llama", None, None)
    assert one.aliases == ("small",)
    assert one.paths == (folder / "one.gguf",)
    assert one.size == one.paths[0].stat().st_size
    assert many.paths == tuple(split)
    assert many.size == sum(path.stat().st_size for path in split)
    assert many.n_params == one.n_params
    assert (other.architecture, other.quantization, other.context_length) == ("mamba", "F16", 99)
    assert found["deep"].paths == (folder / "below" / "deep.gguf",)


def _cut(path):
    os.truncate(path, path.stat().st_size - 1000)


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no model at all"),
    "header": lambda path: os.truncate(path, 100),
    "tensors": _cut,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_listed_with_its_problem_and_nothing_is_logged(folder, caplog, damage):
    path = folder / "bad.gguf"
    copyfile(folder / "one.gguf", path)
    DAMAGES[damage](path)
    with caplog.at_level(logging.DEBUG, logger="pyllama.llama_cpp"):
        found = listed(folder)
    assert found["one"].problem is None
    assert str(path) in found["bad"].problem or "file bounds" in found["bad"].problem
    assert found["bad"].architecture is None
    assert caplog.records == []


def test_a_missing_part_is_a_problem_that_names_it(folder, split):
    split[1].unlink()
    info = listed(folder)["many"]
    assert split[1].name in info.problem
    assert str(len(split)) in info.problem


def test_a_file_that_is_no_model_is_a_problem(folder, write_tiny_model):
    adapter = write_tiny_model(metadata={"general.type": "adapter"})
    copyfile(adapter, folder / "lora.gguf")
    assert "adapter" in listed(folder)["lora"].problem


def test_a_header_is_read_again_when_its_file_changes(folder, write_tiny_model, monkeypatch):
    reads = []
    real = pyllama.Model

    def counted(path, **options):
        reads.append(path.name)
        return real(path, **options)

    monkeypatch.setattr(pyllama, "Model", counted)
    models = ModelFolder(folder, {})
    [before] = models.models()
    assert list(models.models()) == [before]
    assert reads == ["one.gguf"]
    copyfile(write_tiny_model(n_ctx_train=1024), folder / "one.gguf")
    [after] = models.models()
    assert (before.context_length, after.context_length) == (512, 1024)
    assert len(reads) == 2


def test_hidden_files_and_folders_are_not_listed(folder):
    copyfile(folder / "one.gguf", folder / ".fetching.gguf")
    (folder / "folder.gguf").mkdir()
    assert list(listed(folder)) == ["one"]


@pytest.mark.model
def test_a_listing_knows_the_quantization_of_a_real_model(smollm2_path):
    info = listed(smollm2_path.parent)[smollm2_path.stem]
    assert (info.architecture, info.quantization, info.context_length) == ("llama", "Q4_1", 8192)
    assert info.n_params == 134_515_008


# On Windows


@pytest.mark.parametrize(
    "name",
    [
        "C:x", "c:", "one:two", "one::$DATA", "CON", "nul", "NUL.v2", "aux ", "LPT1", "com\u00b9",
        "CONIN$", "what?", "a*", "a|b", '"', "<", "tab\t", "line\n",
    ],
)  # fmt: skip
def test_a_name_that_windows_takes_for_something_else_is_refused_there(name):
    assert "Windows" in _misnamed(name, on_windows=True)
    assert _misnamed(name, on_windows=False) is None


@pytest.mark.parametrize(
    "name", ["one", "Llama-3.2-1B.Q4_K_M", "a b", "console", "nulls", "com10", "com", "a.", "Ω"]
)
def test_a_plain_name_is_one_on_windows_too(name):
    assert _misnamed(name, on_windows=True) is None
    assert not PureWindowsPath(f"{name}.gguf").drive


@pytest.mark.parametrize(
    "target",
    [
        "C:one.gguf", "C:/one.gguf", "//server/share/one.gguf", "below/one:two.gguf",
        "con/one.gguf", "below/NUL.gguf", "below./one.gguf", "below /one.gguf", "a*/one.gguf",
    ],
)  # fmt: skip
def test_an_alias_for_what_windows_finds_elsewhere_is_refused_there(target):
    with pytest.raises(InvalidModelNameError):
        _require_inside(target, on_windows=True)


def test_a_path_below_the_folder_may_be_an_alias_on_windows():
    _require_inside("below/deep er/one.Q4_0.gguf", on_windows=True)


def test_what_llama_cpp_says_is_kept_out_of_the_log_in_one_thread_and_for_a_while(caplog):
    logger = logging.getLogger("pyllama.llama_cpp")
    thread = threading.Thread(target=logger.warning, args=["of another"])
    with contextlib.suppress(KeyError), unlogged():
        logger.warning("of this thread")
        thread.start()
        thread.join()
        raise KeyError
    logger.warning("afterwards")
    assert [record.getMessage() for record in caplog.records] == ["of another", "afterwards"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_a_part_that_is_a_pipe_is_refused_and_not_read(tmp_path):
    (tmp_path / "split-00001-of-00002.gguf").write_bytes(b"GGUF")
    os.mkfifo(tmp_path / "split-00002-of-00002.gguf")
    with pytest.raises(ModelFileError, match="it is no regular file"):
        ModelFolder(tmp_path, {}).find("split")
