"""``python -m pyllama``: the same as the ``pyllama`` command."""

from adapter.cli import main

if __name__ == "__main__":
    main()
