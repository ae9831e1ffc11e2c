"""Errors that end a command with one line instead of a traceback, and belong to no single package."""


class ServerStartError(Exception):
    """An embedded server could not be started; the message says what to do, or ends with its log."""


class NotRepaired(Exception):
    """A repair stopped before it changed anything; the message says why, and what to do first."""
