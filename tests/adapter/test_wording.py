from __future__ import annotations

import pytest

from adapter.wording import counted, reason_of, short_count


def test_one_is_singular():
    assert [counted(number, "file") for number in (0, 1, 2)] == ["0 files", "1 file", "2 files"]


def test_an_error_of_the_system_has_no_number(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        (tmp_path / "none").read_bytes()
    assert reason_of(caught.value) == f"{tmp_path / 'none'}: No such file or directory"
    assert reason_of(OSError(28, "No space left on device")) == "No space left on device"
    assert reason_of(OSError("our own words")) == "our own words"


def test_parameters_are_counted_as_in_the_names_of_models():
    assert [short_count(number) for number in (0, 999, 108_736, 135_000_000)] == [
        "",
        "999",
        "109K",
        "135M",
    ]
