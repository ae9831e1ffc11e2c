"""Reading environment variables: parsed one by one, all faults collected, no value quoted in a fault.

Imports nothing but the standard library, since a health check reads its settings every few seconds.
"""

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


class SettingsError(Exception):
    """Settings are missing or wrong; the text has one line a fault."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class Environment:
    """The variables, and the faults found in them so far."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.variables = environ
        self.faults: list[str] = []

    def read(
        self,
        name: str,
        parse: Callable[[str], T],
        default: str | None = None,
        old_name: str | None = None,
    ) -> T:
        """Return variable `name`, or the file that NAME_FILE names, parsed; collect what is wrong.

        old_name: what the variable was called; it is still read, with a warning in the log. After a
        fault the return value is of no use: read_settings raises in the end.
        """
        text = self.text(name)
        if old_name and (old := self.text(old_name)):
            name, text = self._renamed(name, text, old_name, old)
        text = text or default
        try:
            if text is None:
                raise ValueError("is required and not set")  # noqa: TRY301  # one place collects faults
            return parse(text)
        except ValueError as fault:
            self.faults.append(f"{name} {fault}")
            return None  # type: ignore[return-value]

    def text(self, name: str) -> str | None:
        """Return the raw text of a variable; blank counts as not set."""
        text, file = self.variables.get(name, "").strip(), self.variables.get(f"{name}_FILE")
        if not file:
            return text or None
        if text:
            self.faults.append(f"{name} and {name}_FILE are both set: keep one of them")
        try:
            return Path(file).read_text(encoding="utf-8").strip() or None
        except (OSError, UnicodeDecodeError) as error:
            self.faults.append(f"{name}_FILE cannot be read: {type(error).__name__}")
            return None

    def _renamed(self, name: str, text: str | None, old_name: str, old: str) -> tuple[str, str]:
        """Warn of a variable that is set under its old name; return the name and text that count."""
        log.warning("setting renamed", extra={"setting": old_name, "use": name})
        if text not in {None, old}:
            self.faults.append(f"{old_name} is the old name of {name}, and both are set: keep {name}")
        return (name, text) if text else (old_name, old)


LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


def read_logging(env: Environment) -> tuple[str, str | None]:
    """Return LOG_LEVEL and LOG_FORMAT; None: what stderr is decides."""
    level = env.read("LOG_LEVEL", one_of(*LOG_LEVELS), "INFO")
    return level, env.read("LOG_FORMAT", if_set(one_of("json", "text")), "")


def read_metrics_address(environ: Mapping[str, str]) -> tuple[str, int]:
    """Read only the address where the process answers: what `healthcheck` needs."""
    env = Environment(environ)
    address = read_address(env)
    if env.faults:
        raise SettingsError(env.faults)
    return address


def read_address(env: Environment) -> tuple[str, int]:
    """Return METRICS_HOST and METRICS_PORT; the port above may be the relay's, under `run`."""
    host = env.read("METRICS_HOST", parse_host, "::")
    return host, env.read("METRICS_PORT", between(0, 65_534), "9464")


def parse_host(text: str) -> str:
    """Accept a name or an address; one of IPv6 in brackets, too."""
    return printable(text[1:-1] if text.startswith("[") and text.endswith("]") else text)


def printable(text: str) -> str:
    """Accept any text without control characters."""
    if not text.isprintable():
        raise ValueError("holds characters that cannot be printed")
    return text


def if_set(parse: Callable[[str], T]) -> Callable[[str], T | None]:
    """Accept what `parse` does; with "" as the default, None stands for a variable that is not set."""
    return lambda text: parse(text) if text else None


def one_of(*choices: str) -> Callable[[str], str]:
    """Accept one of the words, in any case."""

    def parse(text: str) -> str:
        for choice in choices:
            if choice.lower() == text.lower():
                return choice
        raise ValueError(f"must be one of {', '.join(choices)}")

    return parse


def between(low: int, high: int) -> Callable[[str], int]:
    """Accept a whole number from low to high."""

    def parse(text: str) -> int:
        number = int(text) if re.fullmatch(r"[0-9]{1,12}", text) else -1
        if not low <= number <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return number

    return parse
