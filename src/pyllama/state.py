"""The state of a context: what its memory holds, as bytes and in files (llama_state_*)."""

from __future__ import annotations

import os
import stat
import struct
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyllama._arguments import integer, token_array
from pyllama._context_memory import fits
from pyllama._guard import CAUGHT, last_errors, take_str
from pyllama._model_file import path_text
from pyllama._native._binding import ffi, lib
from pyllama._uncopyable import Uncopyable
from pyllama.errors import StateError

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from pyllama._decoding import Decoding
    from pyllama._native._binding import (
        Array,
        Pointer,
        llama_context,
        llama_context_params,
        pyllama_state_expected_p,
    )

# Before llama.cpp's bytes: magic, version, whether of a sequence, flags, separate memories, types
# of keys and values, fingerprint, length, checksum.
_HEADER = struct.Struct("<8sIIIIii16sQQ")
_CHECKSUM_SIZE = 8
_MAGIC = b"pyllama\0"
_VERSION = 2

# A file begins with magic, version and the number of tokens.
_FILE_HEADER = struct.Struct("<III")
# llama.cpp begins the state of a sequence in memory, but not in a file, with io_magic and its id.
_SEQUENCE_PREFIX = struct.pack("<Ii", 0xAF143CD8, 0)


class State(Uncopyable):
    """Takes and sets what a context remembers: keys, values, recurrent states, and positions.

    Logits and embeddings are not part of it, nor is what an encoder computed. The methods without
    ``seq`` take or set the whole memory, and those with it one sequence, which can be set as
    another one, in a context with any number of sequences, ``kv_unified`` or not. Decoding that
    continues from a state gives the same logits to the byte. The exception is the whole memory of a
    model with a sliding window: its next tokens are put elsewhere and summed in another order.

    Bytes taken here begin with a header of pyllama, which names model and settings and holds a
    checksum: damaged bytes and those of another model, of other types of keys and values or other
    RoPE settings are refused before anything changes. Files have llama.cpp's own format, which has
    no checksum: their structure is validated, so that they cannot do harm, but values in them may
    be anything.

    If llama.cpp refuses a state only while setting it (not enough room, say), what was to be set
    is empty afterwards: the sequence, or the memory.
    """

    _instead_of_copying = "get_data() gives what the memory holds as bytes, which can be sent"

    def __init__(
        self, context: Decoding, params: llama_context_params, *, has_memory: bool
    ) -> None:
        self._context = context
        model = context.model
        self._kinds = int(params.type_k), int(params.type_v)
        self._n_memories = 1 if context.kv_unified else context.n_seq_max
        self._architecture = model._in_use.architecture
        self._attention = has_memory and not model.is_recurrent
        self._recurrent = has_memory and (model.is_recurrent or model.is_hybrid)
        rope = (
            params.rope_scaling_type,
            params.rope_freq_base,
            params.rope_freq_scale,
            params.yarn_ext_factor,
            params.yarn_attn_factor,
            params.yarn_beta_fast,
            params.yarn_beta_slow,
            params.yarn_orig_ctx,
        )
        identity = (model._in_use.items(), model.n_params, model.size, rope)
        # hashlib stays unusable if memory ends while it is imported.
        self._fingerprint = _fingerprint(repr(identity).encode())

    # The whole memory

    def get_size(self) -> int:
        """Bytes that ``get_data`` gives now (``llama_state_get_size``)."""
        return self._size(None, 0)

    def get_data(self) -> bytes:
        """What the memory holds (``llama_state_get_data``).

        Raises:
            StateError: shifted or copied tokens wait for the next decode.
        """
        return self._get(None, 0)

    def get_data_into(self, buffer: Buffer) -> int:
        """Write the same into a writeable buffer, such as a numpy array or a bytearray.

        Returns:
            how many bytes were written.

        Raises:
            ValueError: the buffer is smaller than ``get_size``.
        """
        return self._get_into(buffer, None, 0)

    def set_data(self, data: Buffer) -> None:
        """Replace the memory by what ``get_data`` gave (``llama_state_set_data``).

        Args:
            data: bytes, bytearray, memoryview or a contiguous array.

        Raises:
            StateError: the bytes are no state that fits; see the class.
        """
        self._set(data, None)

    def save_file(self, path: str | os.PathLike[str], tokens: ArrayLike = ()) -> None:
        """Write the memory to a file (``llama_state_save_file``).

        The file appears when it is complete, and replaces one of the same name.

        Args:
            tokens: kept beside it, shape (n,); usually those that the memory is of.
        """

        def save(pointer: Pointer[llama_context], name: bytes, ids: Array[int], count: int) -> int:
            return int(lib.guarded_state_save_file(pointer, name, ids, count))

        self._save(path, tokens, save)

    def load_file(self, path: str | os.PathLike[str]) -> NDArray[np.int32]:
        """Replace the memory by what a file holds (``llama_state_load_file``).

        Returns:
            the tokens that were saved beside it, int32 of shape (n,).

        Raises:
            StateError: the file holds no state that fits; see the class.
        """
        return self._load(path, None)

    # One sequence

    def seq_get_size(self, seq_id: int, *, partial_only: bool = False) -> int:
        """Bytes that ``seq_get_data`` gives now (``llama_state_seq_get_size_ext``)."""
        return self._size(self._seq(seq_id), _flags(partial_only))

    def seq_get_data(self, seq_id: int, *, partial_only: bool = False) -> bytes:
        """What the memory holds of a sequence (``llama_state_seq_get_data_ext``).

        Args:
            partial_only: leave out the layers with full attention, whose tokens can be removed one
                by one: for going back to this position in the same sequence with a recurrent,
                hybrid or sliding-window model. Setting it again needs the rest in place.

        Raises:
            StateError: shifted or copied tokens wait for the next decode.
        """
        return self._get(self._seq(seq_id), _flags(partial_only))

    def seq_get_data_into(self, buffer: Buffer, seq_id: int, *, partial_only: bool = False) -> int:
        """Write the same into a writeable buffer; see ``get_data_into``."""
        return self._get_into(buffer, self._seq(seq_id), _flags(partial_only))

    def seq_set_data(self, data: Buffer, seq_id: int) -> None:
        """Replace a sequence by what ``seq_get_data`` gave, of whichever sequence.

        ``llama_state_seq_set_data_ext``.

        Args:
            data: bytes, bytearray, memoryview or a contiguous array.

        Raises:
            StateError: the bytes are no state that fits; see the class.
        """
        self._set(data, self._seq(seq_id))

    def seq_save_file(
        self, path: str | os.PathLike[str], seq_id: int, tokens: ArrayLike = ()
    ) -> None:
        """Write a sequence to a file (``llama_state_seq_save_file``); see ``save_file``."""
        sequence = self._seq(seq_id)

        def save(pointer: Pointer[llama_context], name: bytes, ids: Array[int], count: int) -> int:
            return int(lib.guarded_state_seq_save_file(pointer, name, sequence, ids, count))

        self._save(path, tokens, save)

    def seq_load_file(self, path: str | os.PathLike[str], seq_id: int) -> NDArray[np.int32]:
        """Replace a sequence by what a file holds (``llama_state_seq_load_file``).

        Returns:
            the tokens that were saved beside it, int32 of shape (n,).

        Raises:
            StateError: the file holds no state that fits; see the class.
        """
        return self._load(path, self._seq(seq_id))

    # Internal

    def _seq(self, seq_id: int) -> int:
        return integer("seq_id", seq_id, 0, self._context.n_seq_max - 1)

    def _payload_size(self, pointer: Pointer[llama_context], seq_id: int | None, flags: int) -> int:
        if seq_id is None:
            size = lib.guarded_state_get_size(pointer)
        else:
            size = lib.guarded_state_seq_get_size(pointer, seq_id, flags)
        if size <= 0:
            self._raise_refused(size, "the size of the state")
        return int(size)

    def _size(self, seq_id: int | None, flags: int) -> int:
        with self._context._lock:
            pointer = self._context._open().pointer
            return _HEADER.size + self._payload_size(pointer, seq_id, flags)

    def _get(self, seq_id: int | None, flags: int) -> bytes:
        with self._context._lock:
            buffer = np.empty(self._size(seq_id, flags), dtype=np.uint8).data
            return buffer[: self._get_into(buffer, seq_id, flags)].tobytes()

    def _get_into(self, buffer: Buffer, seq_id: int | None, flags: int) -> int:
        view = _bytes_of("buffer", buffer)
        if view.readonly:
            raise TypeError("buffer must be writeable")
        with self._context._lock:
            pointer = self._context._open().pointer
            self._require_settled()
            size = self._payload_size(pointer, seq_id, flags)
            if len(view) < _HEADER.size + size:
                raise ValueError(
                    f"buffer must hold {_HEADER.size + size} bytes, got one of {len(view)}"
                )
            view = view[: _HEADER.size + size]
            begin = _address(view) + _HEADER.size
            if seq_id is None:
                written = lib.guarded_state_get_data(pointer, begin, size)
            else:
                written = lib.guarded_state_seq_get_data(pointer, begin, size, seq_id, flags)
            if written != size:
                self._raise_refused(written, "taking the state")
            header = self._header(seq_id, flags)
            _HEADER.pack_into(view, 0, *header, size, 0)
            _HEADER.pack_into(view, 0, *header, size, _checksum(view))
            return _HEADER.size + size

    def _header(self, seq_id: int | None, flags: int) -> tuple[Any, ...]:
        of_sequence = int(seq_id is not None)
        kinds = (self._n_memories, *self._kinds, self._fingerprint)
        return (_MAGIC, _VERSION, of_sequence, flags, *kinds)

    def _set(self, data: Buffer, seq_id: int | None) -> None:
        view = _bytes_of("data", data)
        if len(view) < _HEADER.size:
            raise StateError(f"{len(view)} bytes are no state: its header alone takes more")
        *found, size, checksum = _HEADER.unpack_from(view)
        self._require_alike(found, seq_id)
        begin = _address(view) + _HEADER.size
        if size != len(view) - _HEADER.size:
            raise StateError(
                f"the state is {size} bytes long, but {len(view) - _HEADER.size} are here"
            )
        if _checksum(view) != checksum:
            raise StateError("the state is damaged: its checksum does not fit")
        # Anybody who can write bytes can write a checksum.
        prefix = 0 if seq_id is None else len(_SEQUENCE_PREFIX)
        if prefix and (size < prefix or view[_HEADER.size :][:4] != _SEQUENCE_PREFIX[:4]):
            raise StateError("these bytes are no state of a sequence")
        problem = self._problem(begin + prefix, size - prefix, seq_id, found[3])
        if problem:
            raise StateError(f"these bytes are no state that fits here: {problem}")
        self._restore(begin, size, seq_id, found[3], "setting the state")

    def _require_alike(self, found: list[Any], seq_id: int | None) -> None:
        magic, version, of_sequence, flags, n_memories, *kinds, fingerprint = found
        if magic != _MAGIC or version != _VERSION:
            raise StateError("these bytes are no state that this version of pyllama took")
        if of_sequence != int(seq_id is not None):
            kind, use = ("one sequence", "seq_set_data") if of_sequence else ("all", "set_data")
            raise StateError(f"this is the state of {kind}: use {use}()")
        if fingerprint != self._fingerprint:
            raise StateError("the state is of another model, or of one with other RoPE settings")
        if n_memories != self._n_memories and not of_sequence:
            raise StateError(
                f"the state is of a context with {n_memories} separate memories, this one has "
                f"{self._n_memories} (n_seq_max, or 1 with kv_unified=True)"
            )
        if tuple(kinds) != self._kinds:
            raise StateError("the state is of a context with other types of keys and values")
        if flags & ~lib.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY:
            raise StateError("the state was taken with flags that this version does not know")

    def _restore(
        self, begin: Pointer[int], size: int, seq_id: int | None, flags: int, what: str
    ) -> None:
        context = self._context
        with context._lock:
            pointer = context._open().pointer
            self._require_settled()
            if seq_id is None:
                read = lib.guarded_state_set_data(pointer, begin, size)
            else:
                if not flags:
                    context.memory.seq_rm(seq_id)  # an empty state would leave the present one
                refitted = self._refitted(begin, size, seq_id, flags)
                if refitted is not None:
                    begin, size = _address(refitted), len(refitted)
                read = lib.guarded_state_seq_set_data(pointer, begin, size, seq_id, flags)
            if read == size:
                return
            try:
                self._raise_refused(read, what)
            finally:
                # llama.cpp leaves parts of what it had begun, and does not notice that they are
                # incomplete.
                if context.usable:
                    if seq_id is None:
                        context.memory.clear()
                    else:
                        context.memory.seq_rm(seq_id)

    def _save(
        self,
        path: str | os.PathLike[str],
        tokens: ArrayLike,
        save: Callable[[Pointer[llama_context], bytes, Array[int], int], int],
    ) -> None:
        import tempfile  # this may take a while

        name = path_text("path", path)
        ids = token_array(tokens)
        n_vocab = self._context.model.vocab.n_tokens
        if ids.size and ids.max() >= n_vocab:
            raise ValueError(f"tokens must be below {n_vocab}, got {ids.max()}")
        array = ffi.from_buffer("llama_token[]", np.ascontiguousarray(ids))
        with self._context._lock:
            pointer = self._context._open().pointer
            self._require_settled()
            with tempfile.NamedTemporaryFile(
                dir=os.path.dirname(name) or ".", prefix=os.path.basename(name), delete=False
            ) as file:
                partial = file.name
            try:
                written = save(pointer, os.fsencode(partial), array, len(ids))
                if written <= 0:
                    self._raise_refused(written, f"writing {name}")
                os.replace(partial, name)
            except BaseException:
                os.unlink(partial)
                raise

    def _load(self, path: str | os.PathLike[str], seq_id: int | None) -> NDArray[np.int32]:
        name = path_text("path", path)
        content = _read(name)
        if len(content) < _FILE_HEADER.size:
            raise StateError(f"{name} is no state: it is {len(content)} bytes long")
        magic, version, n_tokens = _FILE_HEADER.unpack_from(content)
        if seq_id is None:
            expected = (lib.LLAMA_SESSION_MAGIC, lib.LLAMA_SESSION_VERSION)
        else:
            expected = (lib.LLAMA_STATE_SEQ_MAGIC, lib.LLAMA_STATE_SEQ_VERSION)
        if (magic, version) != expected:
            raise StateError(
                f"{name} is no state of {'a whole context' if seq_id is None else 'one sequence'} "
                "that this llama.cpp reads"
            )
        begin = _FILE_HEADER.size + 4 * n_tokens
        if begin > len(content):
            raise StateError(f"{name} ends within its {n_tokens} tokens")
        stored = np.frombuffer(content, dtype=np.int32, count=n_tokens, offset=_FILE_HEADER.size)
        tokens: NDArray[np.int32] = stored.copy()
        n_vocab = self._context.model.vocab.n_tokens
        if n_tokens and not 0 <= tokens.min() <= tokens.max() < n_vocab:
            raise StateError(f"{name} holds tokens outside the vocabulary (0 to {n_vocab - 1})")
        address, size = _address(memoryview(content)) + begin, len(content) - begin
        problem = self._problem(address, size, seq_id, 0)
        if problem:
            raise StateError(f"{name} holds no state that fits here: {problem}")
        if seq_id is not None:
            # It fits before the state, over the header.
            content[begin - len(_SEQUENCE_PREFIX) : begin] = _SEQUENCE_PREFIX
            address, size = address - len(_SEQUENCE_PREFIX), size + len(_SEQUENCE_PREFIX)
        self._restore(address, size, seq_id, 0, f"loading {name}")
        return tokens

    def _refitted(
        self, begin: Pointer[int], size: int, seq_id: int, flags: int
    ) -> memoryview | None:
        """The bytes for a context with this one's number of memories; None if they fit already."""
        prefix, expected = len(_SEQUENCE_PREFIX), self._expected(seq_id, flags)
        n_parts = 3  # of a memory: each begins with the number of memories, and their lengths
        room = size - prefix + n_parts * 4 * self._n_memories
        view = np.empty(prefix + room, dtype=np.uint8).data
        view[:prefix] = _SEQUENCE_PREFIX
        found = lib.guarded_state_refit(
            begin + prefix,
            size - prefix,
            self._architecture.encode(),
            expected,
            _address(view) + prefix,
            room,
        )
        if found == CAUGHT:
            self._context._check(found, "setting the state")
        return view[: prefix + found] if found else None

    def _problem(self, begin: Pointer[int], size: int, seq_id: int | None, flags: int) -> str:
        """Why llama.cpp must not get these bytes; empty if it may."""
        expected = self._expected(seq_id, flags)
        text = lib.guarded_state_problem(begin, size, self._architecture.encode(), expected)
        return take_str(text, "reading a state")

    def _expected(self, seq_id: int | None, flags: int) -> pyllama_state_expected_p:
        context = self._context
        expected = ffi.new("pyllama_state_expected *")
        expected.n_vocab = context.model.vocab.n_tokens
        expected.n_seq_max = context.n_seq_max
        expected.n_ctx_seq = context.n_ctx_seq
        expected.whole = seq_id is None
        expected.kv_unified = context.kv_unified
        expected.cell_positions = context.n_pos_per_embd > 1
        expected.attention = self._attention
        expected.recurrent = self._recurrent
        expected.partial_only = bool(flags)
        return expected

    def _require_settled(self) -> None:
        if not self._context.memory.settled:
            raise StateError(
                "sequences were shifted or copied since the last decode, which the next one "
                "carries out: decode before taking or setting a state"
            )

    def _raise_refused(self, code: int, what: str) -> NoReturn:
        if code == CAUGHT:
            self._context._check(code, what)
        raise StateError(f"{what}: {last_errors() or 'llama.cpp gave no reason'}")


def _flags(partial_only: bool) -> int:
    flags: int = lib.LLAMA_STATE_SEQ_FLAGS_NONE
    if partial_only:
        flags = lib.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
    return flags


def _bytes_of(name: str, data: Buffer) -> memoryview:
    try:
        return memoryview(data).cast("B")
    except TypeError:
        raise TypeError(f"{name} must be bytes, or a contiguous array, got {data!r:.80}") from None


def _fingerprint(text: bytes) -> bytes:
    begin = ffi.from_buffer("uint8_t[]", text)
    halves = (lib.pyllama_state_checksum(begin, len(text), seed) for seed in (1, 2))
    return struct.pack("<QQ", *halves)


def _address(view: memoryview) -> Pointer[int]:
    """The address of the bytes. The caller keeps the view alive."""
    return ffi.cast("uint8_t *", ffi.from_buffer(view))


def _checksum(view: memoryview) -> int:
    """The checksum of a complete state, header included, except for the checksum itself."""
    seed = zlib.crc32(view[: _HEADER.size - _CHECKSUM_SIZE])
    begin, size = _address(view) + _HEADER.size, len(view) - _HEADER.size
    return int(lib.pyllama_state_checksum(begin, size, seed))


def _read(name: str) -> bytearray:
    with open(name, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise StateError(f"{name} is no file")
        if not fits(status.st_size):
            raise StateError(f"{name} is larger than memory: {status.st_size / 1e9:.1f} GB")
        content = bytearray(status.st_size)
        if file.readinto(content) != status.st_size:
            raise StateError(f"{name} became shorter while it was read")
        return content
