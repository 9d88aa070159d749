"""The runs that whoever asks may know of; all others are not there for them."""

from __future__ import annotations

from autointerp.server.access import Principal
from autointerp.server.shelf import ServedRun, Shelf, no_such_run
from autointerp.store import LabelStore
from autointerp.store.store import RunHead


class SeenShelf:
    """A shelf as one principal sees it: the only way from a request to a run."""

    def __init__(self, shelf: Shelf, principal: Principal) -> None:
        self._shelf = shelf
        self.principal = principal

    @property
    def own(self) -> LabelStore:
        """The server's store, with everybody's rows."""
        return self._shelf.own

    def heads(self) -> list[RunHead]:
        """Its runs and everybody's, the latest first."""
        return [head for head in self._shelf.heads() if self.principal.sees(head.owner)]

    def run(self, run_id: str) -> ServedRun:
        """Errors: UnknownNameError where there is no such run, and in the same words where it is another's; StoreError."""
        # before it is opened: what opening says would tell that it is there
        if not self.principal.sees(self._shelf.owner_of(run_id)):
            raise no_such_run()
        return self._shelf.run(run_id)
