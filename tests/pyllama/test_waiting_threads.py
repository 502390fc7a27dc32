"""How long threads that compute wait for each other before they sleep: libgomp's settings."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from pyllama._native import SPINCOUNT, WAIT_POLICY

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="libgomp is Linux's")

CODE = """
import os, pyllama
print(sorted(name for name in os.environ if name.startswith(("GOMP", "OMP_WAIT"))))
"""


def settings(**environment):
    """What libgomp says of itself as it is loaded: how often its threads check, and their policy;
    and which of its variables are left.
    """
    ours = {name: value for name, value in os.environ.items() if not name.startswith("GOMP")}
    ours.pop("OMP_WAIT_POLICY", None)
    result = subprocess.run(
        [sys.executable, "-c", CODE],
        env={**ours, "OMP_DISPLAY_ENV": "verbose", **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    counts = set(re.findall(r"GOMP_SPINCOUNT = '(\d+)'", result.stderr))
    if not counts:
        pytest.skip("this build computes without libgomp")
    (policy,) = set(re.findall(r"OMP_WAIT_POLICY = '(\w+)'", result.stderr))
    (count,) = counts
    return count, policy.lower(), result.stdout.strip()


def test_threads_wait_for_a_moment_and_no_child_process_inherits_that():
    assert settings() == (SPINCOUNT, WAIT_POLICY, "[]")


def test_what_the_user_sets_stays():
    count, policy, left = settings(GOMP_SPINCOUNT="77")
    assert (count, left) == ("77", "['GOMP_SPINCOUNT']")
    assert policy != WAIT_POLICY
    count, policy, left = settings(OMP_WAIT_POLICY="active")
    assert int(count) > int(SPINCOUNT)
    assert (policy, left) == ("active", "['OMP_WAIT_POLICY']")
