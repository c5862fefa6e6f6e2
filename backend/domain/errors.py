"""Errors that users can act on. Raised where the fact is known, translated once at each rim (CLI, REST, job)."""

from __future__ import annotations

from typing import Any, ClassVar


class ZoograftError(Exception):
    """Base of everything we raise on purpose.

    `cause` is the word stored with a failed job and shown as the problem's type.
    """

    cause: ClassVar[str] = "error"

    @property
    def message(self) -> str:
        return str(self)


class BadInput(ZoograftError):
    """A value that cannot be used: names the field, the value and what would be right."""

    cause = "bad_input"

    def __init__(self, field: str, value: Any, expected: str) -> None:
        self.field, self.value, self.expected = field, value, expected
        shown = repr(value)
        super().__init__(f"{field}: {shown if len(shown) <= 200 else shown[:197] + '...'} is not valid; {expected}")


class NotFound(BadInput):
    """Something named that does not exist; `expected` says what does."""

    cause = "not_found"

    def __init__(self, kind: str, name: str, expected: str = "") -> None:
        ZoograftError.__init__(self, f"{kind}: no {kind} named {name!r}" + (f"; {expected}" if expected else ""))
        self.field, self.value, self.expected = kind, name, expected


class Conflict(ZoograftError):
    """The request contradicts what is stored (a finished job, a taken name, a reused key)."""

    cause = "conflict"


class KeyReused(Conflict):
    """An Idempotency-Key that was already used for another request."""

    cause = "idempotency_key_reused"


class LostLease(ZoograftError):
    """A write of an attempt that is no longer its own: the lease ran out, or the job has ended. Stop at once."""

    cause = "worker_lost"


class CancelRequested(ZoograftError):
    """The attempt is still its own, but somebody asked for the job to be cancelled: a result is not wanted any more."""

    cause = "cancelled"


class NotAllowed(ZoograftError):
    """The caller has no token, or the token lacks the scope."""

    cause = "not_allowed"


class StoreUnavailable(ZoograftError):
    """The database cannot be reached just now."""

    cause = "store_unavailable"


class MissingExtra(ZoograftError):
    """An optional part of the installation is needed for this."""

    cause = "missing_extra"

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs: pip install 'zoograft[{extra}]'")
        self.what, self.extra = what, extra


class NonFiniteLoss(ZoograftError):
    """Training met a NaN or infinite loss; names the step and the term."""

    cause = "nonfinite_loss"

    def __init__(self, step: int, term: str, value: float) -> None:
        super().__init__(f"loss term {term!r} became {value} at step {step}; lower the learning rate or check the data")
        self.step, self.term, self.value = step, term, value
