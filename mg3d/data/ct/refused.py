"""Why a file or a series is not used."""

from mg3d.ledger import Reason


class Refused(Exception):
    """A file or series that cannot be used: a typed reason and a detail that identifies nobody."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
