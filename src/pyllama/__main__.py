"""``python -m pyllama``: the ``pyllama`` command, which the other package provides."""

from importlib.metadata import entry_points

if __name__ == "__main__":
    command, *_ = entry_points(group="console_scripts", name="pyllama")
    command.load()()
