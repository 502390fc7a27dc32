"""DSPy's decision requests, answered with measured probabilities under any adapter."""

from __future__ import annotations

from typing import Any

import dspy
from dspy import LM
from dspy.lm15 import Request, Response

from adapter.errors import ConfigurationError
from adapter.signatures.decisions import DecisionPlan, asked, labelled
from adapter.signatures.llama_cpp_adapter import LlamaCppAdapter


class LlamaCppDecisions:
    """Measures the decisions of a dspy.Predict, whichever adapter DSPy is configured with.

    Give it to a Predict whose outputs are all Choice, Score, Noul, or bool and Literal, instead of
    its lm::

        decide = dspy.Predict(Triage)
        found = decide(lm=LlamaCppDecisions(adapter.lm), ticket="The printer is on fire")

    LlamaCppAdapter does not need it: it measures decisions among other outputs.

    Args:
        lm: the language model of a LlamaCppAdapter, or a copy of it.

    Raises:
        ConfigurationError: an lm that measures no probabilities.
    """

    #: Looked for by dspy.Predict.
    supports_decision_requests = True

    def __init__(self, lm: LM) -> None:
        if not getattr(getattr(lm, "engine", None), "measures_probabilities", False):
            raise ConfigurationError(f"lm must be that of a LlamaCppAdapter, got {lm!r}")
        #: The language model. Calls are in its history, and in DSPy's cache if it uses that.
        self.lm = lm

    def __call__(self, state: dict[str, Any], questions: dict[str, Any]) -> dict[str, Any]:
        """Answer questions about a state, both in DSPy's form."""
        plan = self._plan(state, questions)
        return plan.values({}, self._response(self.lm(self._request(plan))))

    async def acall(self, state: dict[str, Any], questions: dict[str, Any]) -> dict[str, Any]:
        """Do the same without blocking the event loop."""
        plan = self._plan(state, questions)
        return plan.values({}, self._response(await self.lm.acall(self._request(plan))))

    def __repr__(self) -> str:
        if "lm" not in vars(self):
            return "<LlamaCppDecisions, which could not be made>"
        return f"<LlamaCppDecisions of {self.lm!r}>"

    def _plan(self, state: dict[str, Any], questions: dict[str, Any]) -> DecisionPlan:
        decisions = {name: asked(question) for name, question in questions.items()}
        inputs = dict(state["inputs"])
        fields: dict[str, Any] = {name: (str, dspy.InputField()) for name in inputs}
        fields |= {name: (str, dspy.OutputField()) for name in decisions}
        signature = dspy.Signature(fields, _instructions(state))
        demos = labelled([dict(demo) for demo in state.get("demos", ())], decisions)
        return DecisionPlan.of(LlamaCppAdapter(), signature, decisions, demos, inputs)

    def _request(self, plan: DecisionPlan) -> Request:
        return plan.request(self.lm, {})

    def _response(self, response: Any) -> Response:
        assert isinstance(response, Response)  # a Request was given
        return response


def _instructions(state: dict[str, Any]) -> str:
    """The instructions, with what the signature says about its inputs."""
    inputs = str(state.get("input_fields") or "").strip()
    parts = [str(state["instructions"]).strip(), f"Inputs:\n{inputs}" if inputs else ""]
    return "\n\n".join(part for part in parts if part)
