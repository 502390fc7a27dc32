"""Damaged adapters, control vectors and states are used or refused. The process lives on."""

from __future__ import annotations

import itertools

import fuzz
import pytest
from fuzzing import Use, assert_harmless, run_in_child, truncations

TENSORS = ["lora", "control vector", "imatrix"]
STATES = [f"{model} state {form}" for model in ("llama", "mamba") for form in fuzz.STATES]


@pytest.fixture(scope="module")
def targets(tmp_path_factory, write_tiny_model):
    return dict(fuzz.targets(tmp_path_factory.mktemp("files"), write_tiny_model))


def test_intact_files_are_accepted(targets):
    for name, target in targets.items():
        assert assert_harmless(target.use, [("intact", target.intact)]) == {"accepted": 1}, name


@pytest.mark.parametrize("name", TENSORS)
def test_cut_files_of_tensors(targets, name):
    target = targets[name]
    places = [field.offset for field in target.parts.fields]
    places += [target.parts.header_size, len(target.intact)]
    assert set(assert_harmless(target.use, truncations(target.intact, places))) == {"refused"}


@pytest.mark.parametrize("name", TENSORS)
def test_files_of_tensors_without_a_part_or_with_a_wrong_number(targets, name):
    target = targets[name]
    files = itertools.chain(target.parts.without_a_part(), target.parts.wrong_numbers())
    kinds = assert_harmless(target.use, files)
    assert kinds["refused"] > kinds["accepted"] > 0


@pytest.mark.parametrize("name", [*TENSORS, *STATES])
def test_random_damage(targets, name):
    target = targets[name]
    kinds = assert_harmless(target.use, target.mutations(seed=1, count=250))
    assert kinds["refused"] > 0


@pytest.mark.parametrize("name", STATES)
def test_cut_states(targets, name):
    target = targets[name]
    step = max(1, len(target.intact) // 50)
    places = [*range(1, 200, 3), *range(200, len(target.intact), step), len(target.intact)]
    assert set(assert_harmless(target.use, truncations(target.intact, places))) == {"refused"}


# Whether the harness sees what it is there to see


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        ("nothing", "accepted"),
        ("refuse", "refused"),
        ("segfault", "died"),
        ("hang", "hung"),
        ("eat_memory", "greedy"),
        ("raise_key_error", "raised"),
    ],
)
def test_the_child_reports_what_happened(function, kind):
    use = Use(f"harmful_uses:{function}")
    outcomes = list(run_in_child(use, [("a", b""), ("b", b"")], seconds=1))
    assert [outcome.kind for outcome in outcomes] == [kind, kind]
