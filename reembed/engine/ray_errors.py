"""What a Ray error means: the error that a worker raised, without Ray's own around it."""

from __future__ import annotations

from typing import Any, cast

from ray.exceptions import RayActorError, RayTaskError

from reembed.errors import ReembedError


def reason(error: BaseException) -> str:
    """Return what went wrong in the worker, without Ray's words around it."""
    while isinstance(error, RayTaskError) or error.__cause__ is not None:
        inner = getattr(error, "cause", None) or error.__cause__
        if inner is None or inner is error or not str(inner).strip():
            break
        error = inner
    lines = str(error).strip().splitlines() or ["no message"]
    # For an actor that could not start, Ray keeps only the traceback, which ends in the cause.
    said = lines[-1] if isinstance(error, RayActorError) else lines[0]
    return f"{type(error).__name__}: {said.strip()}"


def unwrapped(error: BaseException) -> BaseException:
    """Return the ReembedError that a Ray error carries, or the error itself."""
    cause: Any = error
    while cause is not None:
        if isinstance(cause, RayTaskError) and isinstance(cause, ReembedError):
            # A class that Ray makes of both, which prints badly: the cause alone is raised.
            return cast(ReembedError, cause.cause)
        if isinstance(cause, ReembedError):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    return error
