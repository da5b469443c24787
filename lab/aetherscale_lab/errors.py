"""The one exception that the lab raises for things a person can do something about."""


class LabError(Exception):
    """Something the user can act on; `hint` says what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
