"""Standard streams and signals: what surrounds a command, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "pyllama"]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the streams are those of POSIX")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device is always full")
@pytest.mark.parametrize(
    "arguments",
    [
        ["--version"],
        ["show", "MODEL"],
        ["show", "MODEL", "--json"],
        ["run", "MODEL", "hello", "-n", "2", "-c", "256"],
    ],
)
def test_a_full_disk_behind_standard_output_is_one_line(tiny_model_path, arguments):
    model = str(tiny_model_path)
    command = [*COMMAND, *(model if word == "MODEL" else word for word in arguments)]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=120,
        )
    assert done.returncode == 1
    lines = done.stderr.decode().splitlines()
    assert lines[-1] == "error: standard output cannot be written: No space left on device"
    assert not [line for line in lines if "Traceback" in line or "Exception" in line]


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_reader_that_goes_is_no_error(tiny_model_path, options):
    command = [*COMMAND, "show", str(tiny_model_path), *options]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, timeout=120)
    os.close(write)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert b"Exception" not in done.stderr
    assert b"cannot be written" not in done.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_may_be_closed(tiny_model_path, closed):
    program = ' "$@" '.join(("exec", closed))
    command = ["sh", "-c", program, "sh", *COMMAND, "show", str(tiny_model_path), "--json"]
    before = tiny_model_path.read_bytes()
    done = subprocess.run(command, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert tiny_model_path.read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_nothing_half_made(tiny_model_path, tmp_path, number):
    program = (
        "import sys\n"
        "import pyllama\n"
        "from pathlib import Path\n"
        "from adapter.cli import app\n"
        "tool = Path(sys.argv.pop())\n"
        "pyllama.imatrix_program = lambda: tool\n"
        "app.main()\n"
    )
    tool = tmp_path / "tool"
    body = f"open('x', 'w').close()\nos.kill(os.getppid(), {int(number)})\ntime.sleep(600)\n"
    tool.write_text(f"#!{sys.executable}\nimport os, time\n{body}")
    tool.chmod(0o700)
    text = tmp_path / "text.txt"
    text.write_text("hello world " * 80)
    command = [sys.executable, "-c", program, "imatrix", str(tiny_model_path), str(text)]
    command += ["-c", "32", "-o", str(tmp_path / "out.gguf"), str(tool)]
    done = subprocess.run(command, capture_output=True, timeout=120)
    assert done.returncode == 128 + number
    assert b"Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.txt", "tool"]


def test_an_error_about_a_file_is_not_called_one_of_standard_output():
    program = (
        "from adapter.cli import app\n"
        "def broken():\n"
        "    raise PermissionError(13, 'Permission denied', 'a file')\n"
        "app.app = broken\n"
        "app.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr == b"error: a file: Permission denied\n"


def test_ctrl_c_while_modules_are_imported_is_quiet():
    program = (
        "import sys\n"
        "class Interrupts:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'typer':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupts())\n"
        "from adapter.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=120)
    assert done.returncode == 130
    assert done.stderr == b""
