"""Commands about the machine: what models run on here, and what they may use elsewhere."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Annotated

import typer

from adapter.cli.console import fail, note, refuse, row, say, say_json, say_prose, show, table
from adapter.cli.missing_drivers import missing_drivers
from adapter.cli.options import AsJson
from adapter.wording import file_size, reason_of

if TYPE_CHECKING:
    from adapter.models.device_choice import DeviceChoice


def devices(
    build: Annotated[
        bool,
        typer.Option(
            "--build", help="List the backends of this build, and why others are missing."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the devices, and why models do or do not run on each."""
    import pyllama
    from adapter.errors import LlamaCppError
    from adapter.models.hardware import HardwareManager, cpu_threads

    if build:
        _list_backends(as_json=as_json)
        return
    try:
        choices = HardwareManager().choices()
    except LlamaCppError as error:
        fail(str(error))
    if as_json:
        facts = list(map(_facts, choices))
        version = pyllama.llama_cpp_version()
        say_json({"devices": facts, "threads": cpu_threads(), "llama_cpp": version})
        return
    made = table("name", "backend", "type", "memory free / total", "description")
    for choice in choices:
        device = choice.device
        free, total = device.memory
        memory = f"{file_size(free)} / {file_size(total)}" if total else "system's"
        row(made, device.name, device.backend, device.type, memory, device.description)
    show(made)
    for choice in choices:
        used = "used" if choice.used else "not used"
        say_prose(f"{choice.device.name} is {used}: {choice.reason}")
    for package in pyllama.backend_packages():
        if package.problem is not None:
            say_prose(f"{package.name} is not used: {package.problem}")
    for line in missing_drivers():
        say_prose(line)
    say(f"threads: {cpu_threads()}")
    say(f"llama.cpp {pyllama.llama_cpp_version()}")


def _facts(choice: DeviceChoice) -> dict[str, object]:
    device = choice.device
    free, total = device.memory
    return {
        "name": device.name,
        "backend": device.backend,
        "type": device.type,
        "memory_free": free,
        "memory_total": total,
        "description": device.description,
        "used": choice.used,
        "reason": choice.reason,
    }


def _list_backends(*, as_json: bool) -> None:
    import pyllama

    entries = pyllama.build_info()
    if as_json:
        say_json([{"name": e.name, "built": e.built, "note": e.note} for e in entries])
        return
    made = table("backend", "built", "note")
    for entry in entries:
        row(made, entry.name, "yes" if entry.built else "no", entry.note)
    show(made)


def rpc_server(
    host: Annotated[str, typer.Option(help="IPv4 address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for a free one.")] = 50052,
    expose: Annotated[
        bool, typer.Option("--expose", help="Allow an address that other machines can reach.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, max=512, help="Threads of a CPU that is offered.")
    ] = None,
) -> None:
    """Offer this machine's devices to ModelPool(rpc=[…]) on other machines, until Ctrl-C."""
    import pyllama

    try:
        socket.inet_aton(host)
        host.encode("ascii")
    except (OSError, ValueError):
        refuse(f"--host {host} is no IPv4 address, such as 127.0.0.1")
    if not host.startswith("127."):
        risk = "the protocol has no password and no encryption: whoever reaches the port owns it"
        if not expose:
            refuse(f"{host} can be reached from elsewhere, and {risk}. If that is safe: --expose")
        note(f"warning: {risk}")
    try:
        with pyllama.RpcServer(host, port, n_threads=threads) as server:
            say(f"serving on {server.endpoint}")
            server.wait()
            fail("the server ended by itself; its output is above")
    except KeyboardInterrupt:
        return
    except OSError as error:
        fail(f"the server cannot listen on {host}:{port}: {reason_of(error)}")
    except pyllama.LlamaError as error:
        fail(str(error))
