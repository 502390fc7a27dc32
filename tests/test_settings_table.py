"""docs/reference/settings.md is what the declarations say."""

from __future__ import annotations

import settings_table

from adapter.engine.config import SETTINGS


def test_the_table_is_up_to_date():
    table = settings_table.TABLE.read_text(encoding="utf-8")
    assert table == settings_table.render(), "run scripts/settings_table.py"


def test_each_setting_has_one_row():
    rows = [line.split("`")[1] for line in settings_table.render().splitlines() if "| `" in line]
    assert sorted(rows) == sorted(SETTINGS)
