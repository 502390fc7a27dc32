"""``python -m pyllama``: the same as the ``pyllama`` command."""

from adapter.cli.app import main

if __name__ == "__main__":
    main()
