"""Every error that a user can see, with its exit code.

ReembedError (1)                a failure with a known reason
├── UsageError (2)              the command line or the config is wrong
│   └── ConfigError             one or more settings are wrong; all of them are named at once
├── SourceError (2)             the source dataset cannot be used as it is
│   └── SourceUnreachable (2)   its disk or its object store failed
├── EncoderError (2)            an encoder cannot embed
│   ├── SetupError (2)          the model cannot be loaded, or a setting does not fit: the run stops
│   ├── DocumentError (1)       this text cannot be embedded: a dead letter
│   └── ProviderError (75)      the model's provider does not answer: wait, then the same command resumes
│       └── ProviderBusy (75)   the provider has no capacity now
├── SpaceMismatch (2)           vectors of two spaces would meet
├── RunFailed (1)               a rebuild stopped; the same command resumes it
│   └── TooManyDeadLetters      more documents could not be embedded than are allowed
├── NoCapacity (75)             no node is left that a model fits on; the same command resumes
├── Interrupted (75, 130)       the process was asked to end: SIGTERM, Ctrl-C
├── StorageFailed (1)           a disk or an object store failed
├── IntegrityError (1)          stored bytes are not what was written
├── NotVerified (2)             a verification could not be carried out
├── GateFailed (3)              the comparison failed or is missing
├── Conflict (4)                another promote or run won
└── Inconclusive (6)            the comparison could not decide

Exit code 5 is not an error: the release lacks a change older than `verify --fresh-within` allows.

Each error says what happened, why, and which command fixes it, without credentials. All can be
pickled, because they are passed through Ray.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable
from math import inf
from numbers import Integral, Real

from reembed.redact import redacted


class ReembedError(Exception):
    """Base of all errors: `what` happened, `why`, and `fix`, a command to paste."""

    exit_code = 1

    def __init__(self, what: str, why: str | None = None, fix: str | None = None) -> None:
        # Redacted here, so that logs, reports and dead letters need not do it.
        self.what = redacted(what)
        self.why = why and redacted(why)
        self.fix = fix and redacted(fix)
        super().__init__(self.what, self.why, self.fix)

    def __str__(self) -> str:
        lines = [self.what]
        if self.why:
            lines.append(f"  {self.why}")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)


class UsageError(ReembedError):
    """The command line asks for something that cannot be done."""

    exit_code = 2


class ConfigError(UsageError):
    """One or more settings are wrong."""


class SourceError(ReembedError):
    """The source dataset is missing, empty, or its columns do not fit."""

    exit_code = 2


class SourceUnreachable(SourceError):
    """The store that the source is in did not answer, or answered with an error."""


class EncoderError(ReembedError):
    """An encoder cannot embed. The subclasses tell set-up, document and provider apart."""

    exit_code = 2


class SetupError(EncoderError):
    """The model is missing, incomplete, or produces something else than configured."""


class DocumentError(EncoderError):
    """A text that this model cannot embed. Other texts are not affected."""

    exit_code = 1


class ProviderError(EncoderError):
    """The model's provider does not answer, or answers with an error that is not about the texts.

    This is not a fault of a document: the worker waits, retries, and finally stops.
    """

    exit_code = 75

    def __init__(
        self,
        what: str,
        why: str | None = None,
        fix: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        """`retry_after_s`: how long the provider asks to wait, if it does."""
        super().__init__(what, why, fix)
        self.retry_after_s = retry_after_s


class ProviderBusy(ProviderError):
    """The provider answers that it has no capacity now, or that a rate limit is reached."""


class SpaceMismatch(ReembedError):
    """Vectors of two different spaces would be compared or stored together."""

    exit_code = 2


class Interrupted(ReembedError):
    """The process was asked to end, by a signal. What is staged is kept."""

    def __init__(self, number: int) -> None:
        """`number` is the number of the signal."""
        self.number = number
        self.exit_code = 130 if number == signal.SIGINT else 75
        super().__init__(
            f"stopped by {signal.Signals(number).name}",
            "staged units are kept, and what is live did not change",
            "reembed status     # the same command resumes",
        )

    def __reduce__(self) -> tuple[type[Interrupted], tuple[int]]:
        return type(self), (self.number,)


class RunFailed(ReembedError):
    """A rebuild stopped. Staged units are kept; the same command resumes."""


class TooManyDeadLetters(RunFailed):
    """More documents could not be embedded than are allowed."""


class NoCapacity(ReembedError):
    """The cluster lost every node that a model fits on. Staged units are kept."""

    exit_code = 75


class IntegrityError(ReembedError):
    """Stored bytes or rows are not what was written."""


class NotVerified(ReembedError):
    """A verification could not be carried out, so there is no result."""

    exit_code = 2


class GateFailed(ReembedError):
    """The candidate may not be promoted."""

    exit_code = 3


class Conflict(ReembedError):
    """Another process moved the alias or holds the run."""

    exit_code = 4


class Inconclusive(ReembedError):
    """The comparison has too few queries to decide."""

    exit_code = 6


class StorageFailed(ReembedError):
    """A disk or an object store did not answer, or answered with an error."""


def require_whole(
    name: str, given: object, least: int, default: int, most: int | None = None
) -> None:
    """Refuse an argument that is not a whole number of a range.

    Raises:
        UsageError: it is not one.
    """
    whole = isinstance(given, Integral) and not isinstance(given, bool)
    if whole and least <= given and (most is None or given <= most):  # type: ignore[operator]
        return
    up = "up" if most is None else f"to {most}"
    raise UsageError(
        f"{name} must be a whole number from {least} {up}, not {given!r:.80}",
        None,
        f"{name}={default}",
    )


def require_positive(name: str, given: object, default: float) -> None:
    """Refuse an argument that is not a finite number above 0.

    Raises:
        UsageError: it is not one.
    """
    number = isinstance(given, Real) and not isinstance(given, bool)
    if number and 0 < given < inf:  # type: ignore[operator]
        return
    raise UsageError(
        f"{name} must be a number above 0, not {given!r:.80}", None, f"{name}={default:g}"
    )


def texts_of(name: str, given: object, fix: str, what: str = "a list of texts") -> list[str]:
    """Return any ordered iterable of texts as a list.

    Raises:
        UsageError: it is not one; `what` says what is expected.
    """
    found, why = [], f"it is of type {type(given).__name__}"
    if isinstance(given, str | bytes):
        why = "a single text would be taken letter by letter"
    elif isinstance(given, Iterable) and not isinstance(given, dict | set):
        found = list(given)
        others = [n for n, one in enumerate(found) if not isinstance(one, str)]
        if not others:
            return found
        why = f"item {others[0]} of it is of type {type(found[others[0]]).__name__}"
    raise UsageError(f"{name} must be {what}, not {given!r:.80}", why, fix)
