"""Carry any merge over checkpoint files in bounded memory: plan, execute, resume, verify."""

from polyfuse.streaming.execution import execute
from polyfuse.streaming.plan import make_plan

__all__ = ["execute", "make_plan"]
