from __future__ import annotations

import pytest

from adapter.models.hub.choice import UnclearError, candidates, choose, is_safe

REPOSITORY = [
    "README.md",
    "config.json",
    "Model-Q4_K_M.gguf",
    "Model-Q4_K_S.gguf",
    "Model-UD-Q4_K_XL.gguf",
    "Model.f16.gguf",
    "Q8_0/Model-Q8_0-00001-of-00002.gguf",
    "Q8_0/Model-Q8_0-00002-of-00002.gguf",
    "BF16/Model-BF16-00001-of-00002.gguf",
    "imatrix.gguf",
    "mtp-Model-Q8_0.gguf",
    "mmproj-Model-f16.gguf",
    "mmproj-Model-Q8_0.gguf",
]


@pytest.mark.parametrize(
    ("tag", "file"),
    [
        ("Q4_K_M", "Model-Q4_K_M.gguf"),
        ("q4_k_s", "Model-Q4_K_S.gguf"),
        ("F16", "Model.f16.gguf"),
        ("Q4_K_XL", "Model-UD-Q4_K_XL.gguf"),
        ("UD-Q4_K_XL", "Model-UD-Q4_K_XL.gguf"),
        ("Q8_0", "Q8_0/Model-Q8_0-00001-of-00002.gguf"),
        ("model-q4_k_m.GGUF", "Model-Q4_K_M.gguf"),
        ("Model-Q8_0-00001-of-00002.gguf", "Q8_0/Model-Q8_0-00001-of-00002.gguf"),
    ],
)
def test_a_tag_means_one_model(tag, file):
    assert choose(REPOSITORY, tag).files[0] == file


def test_parts_come_together_and_a_model_without_all_is_none():
    parts = choose(REPOSITORY, "Q8_0").files
    assert [part[-19:] for part in parts] == [
        "-00001-of-00002.gguf"[1:],
        "-00002-of-00002.gguf"[1:],
    ]
    assert all("BF16" not in model.stem for model in candidates(REPOSITORY))


@pytest.mark.parametrize("tag", ["Q4_K", "K_M", "Q4", "*", ".", "Q2_K", "imatrix.gguf", None])
def test_what_is_unclear_or_not_there_lists_all_models(tag):
    with pytest.raises(UnclearError) as caught:
        choose(REPOSITORY, tag)
    assert len(caught.value.choices) == 5


def test_several_that_fit_are_listed_alone():
    paths = ["a/X-Q4_0.gguf", "b/X-Q4_0.gguf", "X-Q8_0.gguf"]
    with pytest.raises(UnclearError, match="several") as caught:
        choose(paths, "Q4_0")
    assert [model.stem for model in caught.value.choices] == ["a/X-Q4_0", "b/X-Q4_0"]
    assert choose(paths, "b/X-Q4_0.gguf").stem == "b/X-Q4_0"


def test_the_mmproj_is_the_nearest_and_then_of_like_precision():
    assert choose(REPOSITORY, "Q8_0").mmproj == "mmproj-Model-Q8_0.gguf"
    assert choose(REPOSITORY, "F16").mmproj == "mmproj-Model-f16.gguf"
    nested = ["m-Q8_0.gguf", "mmproj-f16.gguf", "v2/m-F16.gguf", "v2/mmproj-q8_0.gguf"]
    assert choose(nested, "F16").mmproj == "v2/mmproj-q8_0.gguf"
    assert choose(nested, "Q8_0").mmproj == "mmproj-f16.gguf"


@pytest.mark.parametrize(
    "path",
    [
        "../x.gguf", "/x.gguf", "a/../../x.gguf", "a//x.gguf", "./x.gguf", "a\\x.gguf", "C:x.gguf",
        "a\nx.gguf", "a\x1b[2Jx.gguf", "x\0.gguf", "", "a/", " /x.gguf", "x" * 300 + ".gguf",
        "a./x.gguf", "a/" * 600 + "x.gguf",
    ],
)  # fmt: skip
def test_a_path_that_leads_elsewhere_is_no_file(path):
    assert not is_safe(path)
    assert candidates([path]) == []
