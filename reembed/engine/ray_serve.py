"""Replicas of an ASGI application, as Ray Serve runs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray import serve


def replicas(build: Callable[[], Any], name: str, number: int) -> Any:
    """Return the application of Ray Serve whose replicas, that many, each build their own ASGI application."""

    def built() -> Any:  # Ray Serve calls only what is a function
        return build()

    deployment: Any = serve.deployment(serve.ingress(built)(), name=name, num_replicas=number)
    return deployment.bind()
