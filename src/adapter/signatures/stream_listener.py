"""Streams one output field through LlamaCppAdapter.

DSPy's StreamListener recognises the forms of its own adapters by their class names, and no others.
"""

from __future__ import annotations

from typing import Any

import dspy
from dspy.adapters.types import Type
from dspy.adapters.utils import format_field_value
from dspy.streaming import StreamListener, StreamResponse
from dspy.utils.exceptions import AdapterParseError

from adapter.signatures.bound_answers import bound_signature
from adapter.signatures.field_markers import FieldMarkers
from adapter.signatures.llama_cpp_adapter import LlamaCppAdapter
from adapter.signatures.parsing import parse_completion
from adapter.signatures.values import is_dspy_type


class LlamaCppStreamListener(StreamListener):
    """Streams one output field of programs that run with LlamaCppAdapter.

        listener = LlamaCppStreamListener("answer")
        stream = dspy.streamify(dspy.Predict("question -> answer"), stream_listeners=[listener])

    The chunks of a field add up to its text in the answer, without markers. Text that may become a
    marker is held back until that is known. An answer without the field's marker comes as one chunk
    when it is complete. With another adapter the listener works like DSPy's own.
    """

    reads_field_lines = True  # looked for by the adapter
    #: Whether the field has begun.
    stream_start: bool
    #: Whether the field has ended.
    stream_end: bool
    _markers: FieldMarkers | None = None
    _sent = ""
    _native = False

    def receive(self, chunk: Any) -> StreamResponse | None:
        """Take the next chunk of the model's stream; return what it adds to the field, if any."""
        if not isinstance(dspy.settings.adapter, LlamaCppAdapter):
            return super().receive(chunk)
        if self.stream_end:
            if not self.allow_reuse:
                return None
            self.stream_end = self.stream_start = self._native = False
            self._markers, self._sent = None, ""
        if native := self._native_piece(chunk):
            self.stream_start = self._native = True
            return self._response(native)
        if self._markers is None:
            bound = bound_signature(self.predict)
            self._markers = FieldMarkers(
                bound or self.predict.signature, is_bound=bound is not None
            )
        if not chunk.choices:
            return None  # the usage, in a provider's stream
        choice = chunk.choices[0]
        if choice.delta.content:
            self._markers.push(choice.delta.content)
        if choice.finish_reason is not None:
            return self._finish(self._markers)
        settled = self._markers.settled(self.signature_field_name)
        if settled is None:
            return None
        self.stream_start, self.stream_end = True, settled.complete
        piece = settled.text.removeprefix(self._sent)
        self._sent = settled.text
        return self._response(piece) if piece or settled.complete else None

    def finalize(self) -> StreamResponse | None:
        """Return the rest of the text if a stream ended without an end event."""
        if not isinstance(dspy.settings.adapter, LlamaCppAdapter):
            return super().finalize()
        if self.stream_end or self._markers is None:
            return None
        return self._finish(self._markers)

    def _finish(self, markers: FieldMarkers) -> StreamResponse | None:
        self.stream_end = True
        if self._native:
            return self._response("")
        value = markers.values().get(self.signature_field_name)
        if value is None:
            value = self._parsed_value(markers.text)
        if value is None:
            return None
        self.stream_start = True
        return self._response(value.removeprefix(self._sent))

    def _parsed_value(self, text: str) -> str | None:
        """Return the field's value in an answer without its marker."""
        signature = self.predict.signature
        try:
            fields = parse_completion(signature, text)
        except AdapterParseError:
            return None  # the program fails with this error
        name = self.signature_field_name
        return str(format_field_value(signature.output_fields[name], fields[name]))

    def _native_piece(self, chunk: Any) -> Any:
        """Return the piece of a field that does not come as text, such as native reasoning."""
        kind: Any = self._output_type
        native = is_dspy_type(kind, Type) and kind.is_streamable()
        return kind.parse_stream_chunk(chunk) if native else None

    def _response(self, piece: Any) -> StreamResponse:
        return StreamResponse(
            self.predict_name, self.signature_field_name, piece, is_last_chunk=self.stream_end
        )
