"""Objects that own a C object: a copy would be a second owner."""

from __future__ import annotations

from typing import NoReturn


class Uncopyable:
    """Refuses copy.copy(), copy.deepcopy() and pickle, and says what to do instead."""

    _instead_of_copying = "Use the object itself: several threads may share it"

    def __copy__(self) -> NoReturn:
        self._refuse_copying()

    def __deepcopy__(self, _memo: object) -> NoReturn:
        self._refuse_copying()

    def __reduce_ex__(self, _protocol: object) -> NoReturn:
        self._refuse_copying()

    def _refuse_copying(self) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} can be neither copied nor pickled: it stands for an object "
            f"of llama.cpp in this process. {self._instead_of_copying}"
        )
