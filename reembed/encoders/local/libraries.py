"""Turns errors of the libraries that open a model's files into SetupErrors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from reembed.errors import SetupError

_REFUSALS = (
    OSError, ValueError, TypeError, AttributeError, RuntimeError, LookupError, ImportError,
    ArithmeticError, AssertionError,
)  # fmt: skip


@contextmanager
def refusing(what: str, *, but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Run the block, in which a library opens files; `what` says what could not be done.

    Errors of the types `but` are left as they are.

    Raises:
        SetupError: instead of an error that means that the library cannot use the files.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        yield
    except but:
        raise
    except BaseException as error:  # Rust's panics have no type to import
        known = isinstance(error, (*_REFUSALS, StrictDataclassError, SafetensorError))
        # tokenizers raises bare Exceptions.
        if not known and type(error).__name__ not in ("Exception", "PanicException"):
            raise
        raise SetupError(what, f"{type(error).__name__}: {error}") from error
