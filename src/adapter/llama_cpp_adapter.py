"""The DSPy adapter of a loaded model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dspy import LM
from dspy.adapters import Adapter
from dspy.clients.base_lm import BaseLM
from dspy.signatures import Signature
from dspy.utils.callback import BaseCallback

from adapter.config import LlamaCppConfig
from adapter.formatting import field_lines, system_message
from adapter.language_model import language_model
from adapter.parsing import parse_completion

if TYPE_CHECKING:
    from adapter.loaded_model import LoadedModel

GENERATION_SETTINGS = (
    "temperature", "top_p", "top_k", "max_tokens", "stop", "n", "seed", "frequency_penalty",
    "presence_penalty", "logprobs", "top_logprobs", "reasoning_effort", "metadata", "rollout_id",
)  # fmt: skip
"""What a call takes over from the settings of the dspy.LM it was meant for."""


class LlamaCppAdapter(Adapter):
    """Formats signatures for a small local model, runs them on it, and parses its answers.

    Use it with its own language model, for DSPy demands one:

        adapter = LlamaCppAdapter.from_loaded_model(loaded, LlamaCppConfig(loaded.name))
        dspy.configure(lm=adapter.lm, adapter=adapter)

    A call that DSPy makes with another lm is answered by this adapter's model all the same, under
    that lm's history, callbacks, cache switch, retries and generation settings. An optimizer's
    teacher or prompt model would be answered by it too: build the adapter with
    `route_other_lms=False` to let such calls go to their own lm, and only be formatted and parsed
    here.

    `lm` is the dspy.LM of the model. Its model string names the model's content and settings, so
    that DSPy's cache never mixes up two models.
    """

    def __init__(
        self,
        lm: LM,
        *,
        route_other_lms: bool = True,
        callbacks: list[BaseCallback] | None = None,
    ) -> None:
        super().__init__(callbacks=callbacks)
        self.lm = lm
        self.route_other_lms = route_other_lms

    @classmethod
    def from_loaded_model(
        cls,
        loaded: LoadedModel,
        config: LlamaCppConfig,
        *,
        route_other_lms: bool = True,
        callbacks: list[BaseCallback] | None = None,
    ) -> LlamaCppAdapter:
        """Build the adapter of a model that is already in memory.

        Raises ConfigurationError when the config is for another model, or asks for more context
        than the model was loaded with.
        """
        lm = language_model(loaded, config)
        return cls(lm, route_other_lms=route_other_lms, callbacks=callbacks)

    def __call__(
        self,
        lm: BaseLM | None,
        lm_kwargs: dict[str, Any],
        signature: type[Signature],
        demos: list[dict[str, Any]],
        inputs: dict[str, Any],
    ) -> list[dict[str, Any]]:
        """Format the call, run it on this adapter's model, and parse every candidate."""
        route = self._route(lm)
        answers: list[dict[str, Any]] = super().__call__(route, lm_kwargs, signature, demos, inputs)
        return answers

    async def acall(
        self,
        lm: BaseLM | None,
        lm_kwargs: dict[str, Any],
        signature: type[Signature],
        demos: list[dict[str, Any]],
        inputs: dict[str, Any],
    ) -> list[dict[str, Any]]:
        """Do the same without blocking the event loop."""
        route = self._route(lm)
        answers: list[dict[str, Any]] = await super().acall(
            route, lm_kwargs, signature, demos, inputs
        )
        return answers

    def _route(self, lm: BaseLM | None) -> BaseLM:
        """Return the language model that answers a call made with `lm`."""
        if lm is None:
            return self.lm
        if not self.route_other_lms or getattr(lm, "engine", None) is self.lm.engine:
            return lm
        asked = dict(lm.kwargs)
        # How dspy.LM keeps max_tokens for OpenAI's reasoning models.
        asked.setdefault("max_tokens", asked.get("max_completion_tokens"))
        routed: LM = self.lm.copy(
            cache=lm.cache,
            num_retries=lm.num_retries,
            **{name: asked[name] for name in GENERATION_SETTINGS if asked.get(name) is not None},
        )
        routed.history = lm.history
        routed.callbacks = lm.callbacks
        return routed

    def format_system_message(self, signature: type[Signature]) -> str:
        """Return the instructions and the form of the answer."""
        return system_message(signature)

    def format_user_message_content(
        self,
        signature: type[Signature],
        inputs: dict[str, Any],
        prefix: str = "",
        suffix: str = "",
        main_request: bool = False,
    ) -> str:
        """Return the inputs as `field: value` lines."""
        lines = field_lines(signature.input_fields, inputs)
        return "\n\n".join(part for part in (prefix, lines, suffix) if part)

    def format_assistant_message_content(
        self,
        signature: type[Signature],
        outputs: dict[str, Any],
        missing_field_message: str | None = None,
    ) -> str:
        """Return the outputs as `field: value` lines."""
        return field_lines(signature.output_fields, outputs, missing_field_message)

    def parse(self, signature: type[Signature], completion: str) -> dict[str, Any]:
        """Return the output fields in a model's answer; see adapter.parsing.

        Raises AdapterParseError where no strategy finds them all.
        """
        return parse_completion(signature, completion)
