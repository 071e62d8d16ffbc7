"""How a runner says that it could not."""

from __future__ import annotations


class RunnerError(Exception):
    """The runner could not do what it was asked; the message is fit for the user."""


class IsolationUnavailableError(RunnerError):
    """This machine cannot give the isolation asked for; the message names the remedies."""


class ImageNotFoundError(RunnerError):
    """No such image, or one this runner cannot use."""


class BoxGoneError(RunnerError):
    """The box ended, or its agent did."""


class CommandNotStartedError(RunnerError):
    """The command could not be started; `status` is what a shell would exit with: 127 not found, 126 not executable.

    A cwd that does not exist is status 2, as dash has it for a failed `cd`.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class CommandTooLargeError(RunnerError):
    """The arguments and the environment are more than the system passes to a program (E2BIG)."""
