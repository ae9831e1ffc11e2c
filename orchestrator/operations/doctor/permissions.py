"""The checks of `doctor` on what we may do: our role in Postgres, our user in Kafka.

Consumer and relay may have a login each, and the person who asks a third one (docs/security.md). So
nobody is blamed for rights that he has no use for: a process is taken to work under a login that has
one of the rights that only this process needs.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import NamedTuple, cast

import psycopg
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public, not in its __all__
    AclOperation,
    ConsumerGroupDescription,
)
from psycopg.rows import args_row

from orchestrator.kafka.topics import REQUEST_S
from orchestrator.operations.doctor.check import Answer, Away, Site
from outbox import Connection, DatabaseNotReady, query
from outbox.admin import (
    COORDINATOR_MOVES,
    RELAY_PERMISSIONS,
    WRITER_PERMISSIONS,
    TablePermission,
    marker_group,
    read_identity,
)

PROCESSES = ("consumer", "relay")


class Right(NamedTuple):
    """What a process needs. thing: what it is a right to. telling: only this process needs it.

    held: None if nobody can tell.
    """

    process: str
    thing: str
    right: str
    telling: bool
    held: bool | None


def judge(who: str, rights: Sequence[Right], grants: Callable[[Sequence[Right]], str]) -> Answer:
    """Say which processes' work a login may do, and what it lacks for one that it may do in part."""
    if all(right.held is None for right in rights):
        return "skipped", "there is nothing yet that rights could be given to"
    if all(right.held is False for right in rights):
        return "failed", f"{who} has not one right of any role: see docs/security.md"
    lacks = {p: [r for r in rights if r.process == p and r.held is False] for p in PROCESSES}
    able = [p for p in PROCESSES if not lacks[p]]
    begun = {r.process for r in rights if r.telling and r.held}
    if halves := [p for p in PROCESSES if lacks[p] and p in begun]:
        missing = [right for process in halves for right in lacks[process]]
        return "failed", f"{who} lacks rights for the {' and '.join(halves)}: {grants(missing)}"
    if not able:
        return "skipped", f"{who} may look and change nothing: for a process's rights use its login"
    text = f"{who} may do the work of the {' and '.join(able)}"
    text += ", not that of the other process" * (len(able) < len(PROCESSES))
    unknown = dict.fromkeys(right.thing for right in rights if right.held is None)
    return "ok", text + (f"; not known yet for {', '.join(unknown)}" if unknown else "")


# As in schema/roles.sql.
SCHEMA_VERSION = TablePermission("schema_migrations", "SELECT", ("version", "checksum"))
TABLE_PERMISSIONS = {
    "consumer": (
        TablePermission(
            "workers", "INSERT", ("worker_id", "scenario_uuid", "camera_url"), exclusive=True
        ),
        TablePermission("workers", "SELECT", ("worker_id",)),
        *WRITER_PERMISSIONS,
        TablePermission("consumed_offsets", "SELECT"),
        TablePermission(
            "consumed_offsets",
            "INSERT",
            ("consumer_group", "topic", "partition", "topic_id", "next_offset"),
        ),
        TablePermission("consumed_offsets", "UPDATE", ("next_offset", "leader_epoch")),
        SCHEMA_VERSION,
    ),
    "relay": (
        TablePermission("workers", "SELECT", ("worker_id", "status")),
        TablePermission("workers", "UPDATE", ("status", "updated_at")),
        *RELAY_PERMISSIONS,
        SCHEMA_VERSION,
    ),
}

CHECK_TABLES = """
    SELECT process, 'TABLE ' || relation::text,
           privilege || coalesce(' (' || array_to_string(columns, ', ') || ')', ''), exclusive,
           has_table_privilege(relation, privilege)
               OR columns IS NOT NULL
                  AND (SELECT bool_and(has_column_privilege(relation, wanted, privilege))
                         FROM unnest(columns) AS wanted)
      FROM unnest(%(processes)s::text[], %(tables)s::text[], %(privileges)s::text[],
                  %(columns)s::text[], %(exclusive)s::bool[])
           AS needed (process, name, privilege, listed, exclusive),
           to_regclass(name) AS relation,
           string_to_array(nullif(listed, ''), ',') AS columns
     WHERE relation IS NOT NULL
"""
# Where the ids of workers come from: of an adopted table perhaps from no SERIAL, or no sequence at all.
CHECK_SEQUENCES = """
    SELECT process, 'SEQUENCE ' || pg_class.oid::regclass::text, privilege, exclusive,
           has_sequence_privilege(pg_class.oid, any_of)
      FROM (VALUES ('consumer', 'USAGE', true, 'USAGE, UPDATE'),
                   ('relay', 'SELECT', false, 'SELECT, USAGE')
           ) AS needed (process, privilege, exclusive, any_of)
     CROSS JOIN pg_attrdef
      JOIN pg_depend ON classid = 'pg_attrdef'::regclass AND objid = pg_attrdef.oid
      JOIN pg_class ON pg_class.oid = refobjid AND relkind = 'S'
     WHERE adrelid = to_regclass('workers')
"""


def postgres_rights(conn: Connection) -> list[Right]:
    """Return what the processes need in Postgres, as far as it exists, and whether we have it."""
    needed = [(process, one) for process, all_ in TABLE_PERMISSIONS.items() for one in all_]
    values = {
        "processes": [process for process, _ in needed],
        "tables": [one.table for _, one in needed],
        "privileges": [one.privilege for _, one in needed],
        "columns": [",".join(one.columns) for _, one in needed],
        "exclusive": [one.exclusive for _, one in needed],
    }
    tables = query(conn, args_row(Right), CHECK_TABLES, values)
    return tables + query(conn, args_row(Right), CHECK_SEQUENCES)


class Role(NamedTuple):
    """Our role in Postgres. sees_tables: it may use a schema of its search_path."""

    name: str
    quoted: str
    sees_tables: bool


ROLE = "SELECT current_user, quote_ident(current_user), current_schema() IS NOT NULL"


def rights(site: Site) -> Answer:
    """Look for statements of ours that the role may not make; tables that are missing count not."""
    (role,) = query(site.conn, args_row(Role), ROLE)
    if not role.sees_tables:
        return "failed", f"{role.name} may use no schema of its search_path: grant USAGE on one to it"

    def grants(missing: Sequence[Right]) -> str:
        things = dict.fromkeys(right.thing for right in missing)
        wanted = {t: dict.fromkeys(r.right for r in missing if r.thing == t) for t in things}
        return "run as the owner: " + "; ".join(
            f"GRANT {', '.join(those)} ON {thing} TO {role.quoted}" for thing, those in wanted.items()
        )

    return judge(role.name, postgres_rights(site.conn), grants)


READ, WRITE = AclOperation.READ, AclOperation.WRITE
Operations = Sequence[AclOperation] | None  # that we are allowed; None if nobody can tell


def acls(site: Site) -> Answer:
    """Compare what the brokers let us do with what consumer and relay do.

    Of transactional ids they tell nothing: one is tried, see `kafka transactions`.
    """
    rights = list(kafka_rights(site))
    state, text = judge("this user", rights, lambda missing: "grant " + in_words(missing))
    relay_works = state == "ok" and any(r.process == "relay" and r.telling and r.held for r in rights)
    topic = site.settings.input_topic
    allowed = topic_operations(site, topic)
    if relay_works and allowed is not None and WRITE not in allowed:
        advice = f"but not send commands again: before `dlq retry` grant Write on topic {topic}"
        return "warning", f"{text}, {advice}"
    return state, text


def in_words(missing: Sequence[Right]) -> str:
    """Return rights in words."""
    return ", ".join(f"{right.right} on {right.thing}" for right in missing)


def kafka_rights(site: Site) -> Iterator[Right]:
    """Yield what the processes need, and whether we have it."""
    s, markers = site.settings, markers_group(site)
    operations = {
        f"topic {name}": topic_operations(site, name)
        for name in (s.input_topic, s.output_topic, s.dead_letter_topic, s.marker_topic)
    }
    groups = [s.consumer_group, *markers]
    operations |= {f"group {name}": held for name, held in group_operations(site, groups)}
    for process, thing, needed, telling in (
        ("consumer", f"topic {s.input_topic}", READ, False),
        ("consumer", f"group {s.consumer_group}", READ, True),
        ("relay", f"topic {s.output_topic}", WRITE, True),
        ("relay", f"topic {s.dead_letter_topic}", WRITE, True),
        ("relay", f"topic {s.marker_topic}", READ, False),
        *(("relay", f"group {name}", READ, True) for name in markers),
    ):
        allowed = operations[thing]
        held = None if allowed is None else needed in allowed
        yield Right(process, thing, needed.name.title(), telling, held)


def markers_group(site: Site) -> list[str]:
    """Return the group of the markers, if its name can be had: the consumer's role may not see it."""
    with suppress(Away, DatabaseNotReady, psycopg.errors.InsufficientPrivilege):
        return [marker_group(read_identity(site.conn))]
    return []


def topic_operations(site: Site, name: str) -> Operations:
    """Return what we may do with a topic: nothing, if it is hidden; None, if it is missing."""
    if name in site.topics:
        return cast("list[AclOperation]", site.topics[name].authorized_operations or [])
    return [] if name in site.hidden else None


def group_operations(site: Site, groups: Sequence[str]) -> Iterator[tuple[str, Operations]]:
    """Yield each group with what we may do with it."""
    asked = site.admin.describe_consumer_groups(
        list(groups), include_authorized_operations=True, request_timeout=REQUEST_S
    )
    for group, future in cast("dict[str, Future[ConsumerGroupDescription]]", asked).items():
        try:
            yield group, cast("list[AclOperation]", future.result().authorized_operations or [])
        except KafkaException as error:
            code = error.args[0].code()
            if code == KafkaError.GROUP_AUTHORIZATION_FAILED:
                yield group, []
            elif code in COORDINATOR_MOVES:
                yield group, None
            else:
                raise
