"""Every error a user can meet, and the exit code it ends with.

ReembedError (1)                a failure with a known reason
├── UsageError (2)              the command line or the config is wrong
│   └── ConfigError             one or more settings are wrong; all of them are named at once
├── SourceError (2)             the source dataset cannot be used as it is
├── EncoderError (2)            an encoder cannot embed
│   ├── SetupError (2)          the model cannot be loaded, or a setting does not fit: the run stops
│   ├── DocumentError (1)       this text cannot be embedded: a dead letter
│   └── ProviderError (75)      the model's provider does not answer: wait, then the same command resumes
│       └── ProviderBusy (75)   it asks for patience
├── SpaceMismatch (2)           vectors of two spaces would meet
├── RunFailed (1)               a rebuild stopped; the same command resumes it
│   └── TooManyDeadLetters      more documents could not be embedded than are allowed
├── NoCapacity (75)             the cluster has no node left that a model fits on; as above
├── Interrupted (75, 130)       it was asked to end: SIGTERM, Ctrl-C
├── IntegrityError (1)          stored bytes are not what was written
├── NotVerified (2)             whether they are could not be found out
├── GateFailed (3)              the comparison says no, or there is none
├── Conflict (4)                another promote or run won
└── Inconclusive (6)            the comparison could not decide

Not an error, but an exit code of its own: 5, a difference was found (`verify --fresh-within`).

Each carries what happened, why, and a command that fixes it, without credentials. All are picklable:
they cross Ray.
"""

from __future__ import annotations

import signal

from reembed.redact import redacted


class ReembedError(Exception):
    """Root of the tree: `what` happened, `why`, and `fix`, a command to paste."""

    exit_code = 1

    def __init__(self, what: str, why: str | None = None, fix: str | None = None) -> None:
        # Here, so that no log, report or dead letter has to think of it.
        self.what = redacted(what)
        self.why = redacted(why) if why else why
        self.fix = redacted(fix) if fix else fix
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


class EncoderError(ReembedError):
    """An encoder cannot embed. Its subclasses say whose fault it is."""

    exit_code = 2


class SetupError(EncoderError):
    """The model is missing, incomplete, or produces something else than configured."""


class DocumentError(EncoderError):
    """A text that this model cannot embed. Other texts are not affected."""

    exit_code = 1


class ProviderError(EncoderError):
    """The model's provider does not answer, or answers with an error that is not about the texts.

    No document is to blame: the worker waits, tries again, and in the end stops.
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
        """`number` is the signal's."""
        self.number = number
        self.exit_code = 130 if number == signal.SIGINT else 75
        super().__init__(
            f"stopped by {signal.Signals(number).name}",
            "what is staged is kept, and nothing that serves was touched",
            "reembed status     # the same command resumes",
        )

    def __reduce__(self) -> tuple[type[Interrupted], tuple[int]]:
        return type(self), (self.number,)


class RunFailed(ReembedError):
    """A rebuild stopped. What is staged stays; the same command resumes."""


class TooManyDeadLetters(RunFailed):
    """More documents could not be embedded than are allowed."""


class NoCapacity(ReembedError):
    """The cluster lost every node that a model fits on. What is staged stays."""

    exit_code = 75


class IntegrityError(ReembedError):
    """Stored bytes or rows are not what was written."""


class NotVerified(ReembedError):
    """A verification could not be carried out: neither equal nor different."""

    exit_code = 2


class GateFailed(ReembedError):
    """The candidate may not be promoted."""

    exit_code = 3


class Conflict(ReembedError):
    """Somebody else moved first."""

    exit_code = 4


class Inconclusive(ReembedError):
    """The comparison has too few queries to decide."""

    exit_code = 6
