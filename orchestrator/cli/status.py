"""`status`: one screen, once or repeated."""

import argparse
import time
from collections.abc import Iterable
from contextlib import nullcontext, suppress

import psycopg

from orchestrator.cli import screen
from orchestrator.cli.exit_codes import CHECK_FAILED, OK, UNREACHABLE
from orchestrator.cli.known_errors import is_unreachable
from orchestrator.cli.operator_arguments import WATCH_S
from orchestrator.cli.session import operator_session
from orchestrator.cli.status_screen import render_status
from orchestrator.cli.terminal import print_error, print_json, print_lines, shown_lines
from orchestrator.operations.status.flow import flow_between
from orchestrator.operations.status.statements import TIMEOUT_S
from orchestrator.operations.status.status import Status, read_status, status_fields
from orchestrator.program import PROGRAM
from outbox import DatabaseNotReady, error_text

PAUSE_FACTOR = 4  # times as long as the reading took: --watch costs at most a fifth of the time


def show_status(options: argparse.Namespace) -> int:
    """Show the status, once or until Ctrl-C."""
    if options.watch:
        own_screen = nullcontext() if options.json else screen.own_screen()
        with suppress(KeyboardInterrupt), own_screen:
            watch(options)
        return OK
    found = look()
    show(found, options)
    if any(map(is_unreachable, found.unknown.values())):
        return UNREACHABLE
    return CHECK_FAILED if found.unknown or found.problems else OK


def watch(options: argparse.Namespace) -> None:
    """Show it again and again."""
    before: Status | None = None
    while True:
        began = time.monotonic()
        try:
            now = look()
        except (psycopg.Error, DatabaseNotReady) as error:  # just then it is watched: go on
            told = f"postgres: {error_text(error)}; looking again"
            if options.json:
                print_error(UNREACHABLE, told)
            else:
                draw([f"UNKNOWN  {told}"])
        else:
            show(now, options, before)
            before = now
        time.sleep(max(WATCH_S, PAUSE_FACTOR * (time.monotonic() - began)))


def look() -> Status:
    """Read the status once, in a session of its own."""
    with operator_session("status", kafka=False, statement_timeout_s=TIMEOUT_S) as (settings, conn):
        return read_status(settings, conn)


def show(now: Status, options: argparse.Namespace, before: Status | None = None) -> None:
    """Show a status. before: the one of the last look, if it is watched."""
    if options.json:
        print_json(status_fields(now))
        return
    lines = render_status(now, before and flow_between(before, now))
    if options.watch:
        draw(lines)
    else:
        print_lines(lines)


def draw(lines: Iterable[str]) -> None:
    """Show lines in place of the ones before, or below them if this is no terminal."""
    if screen.is_terminal():
        screen.draw(shown_lines(lines), more=f"{PROGRAM} status | less")
    else:
        print_lines(lines)
