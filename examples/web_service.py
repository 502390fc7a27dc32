"""An async web service: pip install starlette uvicorn; uvicorn --app-dir examples web_service:app

    curl "localhost:8000/answer?question=What+is+the+capital+of+France?"

PYLLAMA_MODEL names another model file. The requests of all clients are computed together.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import dspy
from dspy.streaming import StreamResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from adapter import (
    LlamaCppAdapter,
    LlamaCppConfig,
    LlamaCppError,
    LlamaCppStreamListener,
    ModelPool,
    embedded_model,
)

ask = dspy.Predict("question -> answer")


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Load the model when a worker starts, and free it after its last request."""
    named = os.environ.get("PYLLAMA_MODEL")
    path = Path(named) if named else embedded_model.fetch()
    with ModelPool(path.parent) as pool:
        loaded = await pool.aload_model(path.stem)
        config = LlamaCppConfig(loaded.name, max_tokens=60, temperature=0.0, timeout_secs=60)
        app.state.adapter = LlamaCppAdapter.from_loaded_model(loaded, config)
        yield


async def answer(request: Request) -> Response:
    adapter = request.app.state.adapter
    question = request.query_params.get("question", "")
    if not question.strip():
        return JSONResponse({"error": "give a question"}, status_code=400)
    with dspy.context(lm=adapter.lm, adapter=adapter):
        prediction = await ask.acall(question=question)
    return JSONResponse({"answer": prediction.answer})


async def stream(request: Request) -> Response:
    adapter = request.app.state.adapter
    question = request.query_params.get("question", "")

    async def pieces() -> AsyncIterator[str]:
        with dspy.context(lm=adapter.lm, adapter=adapter):
            program = dspy.streamify(ask, stream_listeners=[LlamaCppStreamListener("answer")])
            async for value in program(question=question):
                if isinstance(value, StreamResponse):
                    yield value.chunk

    return StreamingResponse(pieces(), media_type="text/plain")


async def failed(_request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, status_code=503)


app = Starlette(
    routes=[Route("/answer", answer), Route("/stream", stream)],
    exception_handlers={LlamaCppError: failed},
    lifespan=lifespan,
)
