"""Engines on models, and requests to them."""

from __future__ import annotations

from dspy.lm15 import Config, Message, Request

from adapter.engine.config import LlamaCppConfig
from adapter.engine.engine import LlamaCppEngine
from adapter.engine.language_model import language_model


def engine_of(model, **settings):
    return LlamaCppEngine(model, LlamaCppConfig(model.name, **settings))


def lm_of(model, **settings):
    return language_model(model, LlamaCppConfig(model.name, **settings))


def request_to(engine, text="Hello", **config):
    return Request(model=engine.model, messages=(Message.user(text),), config=Config(**config))
