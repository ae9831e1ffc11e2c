"""The arguments of the operator's commands: of those that only read, and of those that change data."""

import argparse

from orchestrator.cli.arguments import (
    Add,
    add_json,
    at_least_one,
    number_or_all,
    offset_or_beginning,
    time_or_age,
    two_numbers,
    uuid,
)

TIME = "TIMESTAMP|DURATION"
TIME_HELP = "2026-01-31T12:00:00Z (UTC unless it names a zone), or an age: 90s, 15m, 2h, 7d"
WATCH_S = 2
LISTED = 50  # of a list, without --limit


def add_views(add: Add) -> None:
    """Add what only reads."""
    status = add(
        "status",
        "status:show_status",
        "Show lanes, partitions, rates and dead letters on one screen, with the repair command of each"
        " refusal.",
        "orchestrator status --watch",
    )
    status.add_argument("--watch", action="store_true", help=f"repeat every {WATCH_S} s")
    doctor = add(
        "doctor",
        "doctor:print_checks",
        "Check settings, Postgres, Kafka and the data in them; print what to do about each fault.",
        "orchestrator doctor",
    )
    doctor.add_argument("--all", action="store_true", help="on a terminal, show what is ok, too")
    explain = add(
        "explain",
        "explain:explain_id",
        "Show the history of an order: command, worker, outbox row, record; what is missing, and why.",
        "orchestrator explain 6f1c1b2e-9d57-4d0c-8f5a-1c2d3e4f5a6b",
    )
    explain.add_argument("id", type=uuid, metavar="SCENARIO_UUID|WORKER_ID")
    audit = add(
        "audit",
        "audit:audit_topic",
        "Compare the output topic with the workers. All processes may keep running.",
        "orchestrator audit --since 2h",
    )
    audit.add_argument(
        "--since",
        type=time_or_age,
        metavar=TIME,
        help=f"leave out what is older: {TIME_HELP}",
    )
    history = add(
        "history",
        "history:show_history",
        "List what operators changed, when, and who.",
        "orchestrator history --since 7d",
    )
    history.add_argument("--since", type=time_or_age, metavar=TIME, help=f"from then on: {TIME_HELP}")
    add_limit(history)
    for parser in (status, doctor, explain, audit, history):
        add_json(parser)


def add_limit(parser: argparse.ArgumentParser) -> None:
    """Add --limit."""
    parser.add_argument("--limit", type=at_least_one, default=LISTED, help=f"how many lines ({LISTED})")


# ---- what changes data: all of it asks first ----------------------------------------------------


def add_confirmation(parser: argparse.ArgumentParser, dry_run: str) -> None:
    """Add --yes and --dry-run, as `terminal.require_answer` expects them. dry_run: what that does."""
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--dry-run", action="store_true", help=dry_run)


def add_repair(add: Add) -> None:
    """Add `repair`."""
    repair = add(
        "repair",
        "repair:repair",
        "Let a refused lane or partition continue.",
        "orchestrator repair lane 2 --dry-run",
    )
    repair.set_defaults(unknown_rows=None, without_inputs=[], start=None, again=False)
    kinds = repair.add_subparsers(required=True, dest="what", metavar="lane|partition")
    lane = kinds.add_parser(
        "lane",
        help="a lane that is refused: its marker disagrees, or the log is unusable",
        description="Find out which of a refused lane's outbox rows are in Kafka, and restart its batch"
        " number from the marker. All input must be consumed; relays may run.",
        epilog="example: orchestrator repair lane all",
    )
    partition = kinds.add_parser(
        "partition",
        help="a partition whose topic was recreated, or whose log was cut or lacks its position",
        description="Set the position from which a refused partition of the input continues. Consumers"
        " may run.",
        epilog="example: orchestrator repair partition 0 --from beginning",
    )
    for parser, kind in ((lane, "lane"), (partition, "partition")):
        parser.add_argument(
            "number", type=number_or_all, metavar="N|all", help=f"this {kind}, or all that are refused"
        )
        add_confirmation(parser, "print what would be done, change nothing")
    lane.add_argument(
        "--unknown-rows",
        choices=("publish", "skip"),
        help="rows whose record may have been deleted by retention: publish them (a reader may see them"
        " twice) or skip them (perhaps no reader ever saw them)",
    )
    lane.add_argument(
        "--without-input",
        action="append",
        dest="without_inputs",
        default=[],
        metavar="TOPIC",
        help="do not wait for this other input of the database: no consumer reads it any more",
    )
    partition.add_argument(
        "--from",
        dest="start",
        type=offset_or_beginning,
        metavar="beginning|OFFSET",
        help="the new position (beginning: the log start offset)",
    )
    partition.add_argument(
        "--again",
        action="store_true",
        help="decide records once more that were decided before: existing workers stay as they are",
    )


def add_waiting_rows(add: Add) -> None:
    """Add `waiting`."""
    waiting = add(
        "waiting",
        "waiting:list_waiting",
        "List the rows that wait in the outbox, by topic, key and age; park some by hand.",
        "orchestrator waiting list",
    )
    actions = waiting.add_subparsers(required=True, metavar="list|park")
    listing = actions.add_parser(
        "list",
        help="Print the rows of each topic, and the first rows.",
        description="Print how many rows wait for each topic, and the first of them.",
        epilog="example: orchestrator waiting list --topic to_deploy",
    )
    listing.add_argument("--topic", help="only for this topic")
    listing.add_argument("--key", help="only with this record key")
    add_limit(listing)
    add_json(listing)
    park = actions.add_parser(
        "park",
        help="Park rows: `parked retry` sends them later.",
        description="Take rows out of the outbox, so that they are not sent. `parked retry` sends them"
        " later, `parked discard` gives them up. Rows in flight are not parked.",
        epilog="example: orchestrator waiting park 2:1017 --reason 'camera is replaced' --dry-run",
    )
    park.set_defaults(command="orchestrator.cli.waiting:park")
    park.add_argument("ids", nargs="+", type=two_numbers, metavar="LANE:ID")
    park.add_argument("--reason", default="no reason given", metavar="TEXT", help="why, for the others")
    add_confirmation(park, "name them, change nothing")


def add_dead_letters(add: Add) -> None:
    """Add `dlq`."""
    dlq = add(
        "dlq",
        "dlq:dlq",
        "List, show, retry or discard dead letters.",
        "orchestrator dlq list",
    )
    purged = "all that is handled, up to the first that waits: Kafka deletes from the beginning only"
    add_actions(dlq, "dlq", "PARTITION:OFFSET", "with this reason", "not_json", purged)


def add_parked_rows(add: Add) -> None:
    """Add `parked`."""
    parked = add(
        "parked",
        "parked:parked",
        "List, show, retry or discard parked rows: those that Kafka rejected.",
        "orchestrator parked list",
    )
    purged = "key, value and headers of these, and of those among them that were discarded before"
    retry = add_actions(
        parked, "parked", "LANE:ID", "with this text in Kafka's reason", "large", purged
    )
    retry.add_argument(
        "--unknown-rows",
        choices=("publish",),
        help="rows so old that retention may have deleted their records: publish them (a reader may see"
        " them twice if the database was restored)",
    )


def add_actions(
    parser: argparse.ArgumentParser,
    name: str,
    id_form: str,
    reason_help: str,
    reason: str,
    purged: str,
) -> argparse.ArgumentParser:
    """Add list, show, retry and discard; return the parser of retry. reason: an example."""
    chosen = argparse.ArgumentParser(add_help=False)
    chosen.add_argument("ids", nargs="*", type=two_numbers, metavar=id_form, help="only these")
    chosen.add_argument("--reason", metavar="TEXT", help=f"only {reason_help}, such as {reason}")
    for option, text in (("--since", "only from this time on"), ("--until", "only before this time")):
        chosen.add_argument(option, type=time_or_age, metavar=TIME, help=f"{text}: {TIME_HELP}")
    chosen.add_argument("--key", help="only with this record key")
    actions = parser.add_subparsers(required=True, dest="action", metavar="list|show|retry|discard")

    def add(action: str, text: str, end: str) -> argparse.ArgumentParser:
        epilog = f"example: orchestrator {name} {action} {end}"
        return actions.add_parser(action, parents=[chosen], help=text, description=text, epilog=epilog)

    listing = add("list", "Print a line for each: id, time, reason.", "--since 2h")
    add_limit(listing)
    listing.add_argument("--handled", action="store_true", help="include those already handled")
    add_json(listing)
    showing = add("show", "Print everything about each, as JSON.", "0:17 --payload")
    showing.add_argument("--payload", action="store_true", help="with its content: may hold passwords")
    showing.add_argument("--json", action="store_true", help="no effect: it is always JSON")
    showing.set_defaults(handled=True, all=False)
    retry = add("retry", "Send them again.", f"--reason {reason} --dry-run")
    discard = add("discard", "Mark them as handled, unsent.", f"--reason {reason} --dry-run")
    discard.add_argument("--purge", action="store_true", help=f"also delete {purged}")
    for changing in (retry, discard):
        changing.add_argument("--all", action="store_true", help="all that are waiting")
        add_confirmation(changing, "count them, change nothing")
        changing.set_defaults(handled=False)
    parser.set_defaults(purge=False)
    return retry
