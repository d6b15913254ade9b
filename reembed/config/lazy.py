"""The settings of a lazy migration: documents get their new vector after they turned up in an answer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from reembed.config.section import Section


class LazySection(Section):
    """How a lazy migration answers, fixed when it starts, and how much it migrates at a time."""

    fusion: Literal["slots", "zscore", "rrf"] = "slots"
    """How the answers of both models become one. slots: migrated documents are ranked again, in the places that they
    hold together. zscore: scores against a common background. rrf: by ranks; for comparison only."""
    depth: Annotated[int, Field(ge=10, le=1_000)] = 50
    """Results of the live release that are ranked again."""
    batch_documents: Annotated[int, Field(ge=1)] = 10_000
    """Documents that one batch migrates at most."""
