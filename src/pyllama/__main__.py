"""``python -m pyllama``: the same as the ``pyllama`` command, which another package holds."""

from importlib.metadata import entry_points

if __name__ == "__main__":
    command, *_ = entry_points(group="console_scripts", name="pyllama")
    command.load()()
