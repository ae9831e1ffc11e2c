"""Where the embedded servers of `run` are reached, kept in a file for commands in another terminal."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from orchestrator.cli.terminal import UsageError

DATA = Path(".data")  # where the embedded servers keep their data
ADDRESSES = DATA / "addresses"  # lines for a shell: export NAME=value


def export_addresses(addresses: Mapping[str, str]) -> None:
    """Set the addresses for our child processes, and keep them in a file; they contain passwords."""
    os.environ.update(addresses)
    ADDRESSES.unlink(missing_ok=True)  # an older one may be open in another user's process
    ADDRESSES.touch(0o600)
    lines = [f"export {name}={value}\n" for name, value in addresses.items()]
    ADDRESSES.write_text("".join(lines))
    print(f"addresses and passwords, for this user alone: . {ADDRESSES}", file=sys.stderr)


SERVERS = ("DATABASE_URL", "KAFKA_BOOTSTRAP_SERVERS")


def with_addresses(environ: Mapping[str, str]) -> Mapping[str, str]:
    """Return the environment; if it names no server, the kept addresses are added.

    One that names only one of them gets none: they belong together. Raises UsageError if they are
    another user's.
    """
    if any(name in environ or f"{name}_FILE" in environ for name in SERVERS):
        return environ
    try:
        lines = ADDRESSES.read_text().splitlines()
    except FileNotFoundError:
        return environ
    except PermissionError as error:
        raise UsageError(
            f"set {' and '.join(SERVERS)}, or run as the user of the servers: {error}"
        ) from error
    return {**environ, **dict(line.removeprefix("export ").split("=", 1) for line in lines)}
