"""The checks of `doctor` on permissions: those of our role in Postgres, and of our user in Kafka.

Consumer and relay may have a login each, and the operator a third one (docs/security.md). So a missing
permission is reported only for a process for which this login is evidently used: it has a permission
that only that process needs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from enum import Enum
from typing import NamedTuple

import psycopg
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public, not in its __all__
    AclOperation,
    ConsumerGroupDescription,
)
from psycopg.rows import args_row

from orchestrator.kafka.topics import REQUEST_S
from orchestrator.operations.doctor.check import Installation, Result, Unreachable
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


class Permission(NamedTuple):
    """A permission that a process needs on a resource.

    identifies_process: no other process needs it. granted: None if that cannot be known.
    """

    process: str
    resource: str
    privilege: str
    identifies_process: bool
    granted: bool | None


def judge_permissions(
    login: str, permissions: Sequence[Permission], advise: Callable[[Sequence[Permission]], str]
) -> Result:
    """Return which processes may run under a login, and what it lacks for one that it is used for.

    advise: how to grant what is missing.
    """
    if all(one.granted is None for one in permissions):
        return "skipped", "there is nothing yet on which permissions could be granted"
    if all(one.granted is False for one in permissions):
        return "failed", f"{login} has no permission of any role: see docs/security.md"
    missing = {
        process: [one for one in permissions if one.process == process and one.granted is False]
        for process in PROCESSES
    }
    able = [process for process in PROCESSES if not missing[process]]
    used_for = {one.process for one in permissions if one.identifies_process and one.granted}
    if unable := [process for process in PROCESSES if missing[process] and process in used_for]:
        advice = advise([one for process in unable for one in missing[process]])
        return "failed", f"{login} lacks permissions for the {' and '.join(unable)}: {advice}"
    if not able:
        text = f"{login} may only read: use a process's login to check its permissions"
        return "skipped", text
    text = f"{login} may run the {' and '.join(able)}"
    text += ", not the other process" * (len(able) < len(PROCESSES))
    unknown = dict.fromkeys(one.resource for one in permissions if one.granted is None)
    return "ok", text + (f"; not known yet for {', '.join(unknown)}" if unknown else "")


# ---- Postgres -----------------------------------------------------------------------------------


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


def read_permissions(conn: Connection) -> list[Permission]:
    """Return what the processes need on the tables that exist, and whether our role has it."""
    needed = [(process, one) for process, some in TABLE_PERMISSIONS.items() for one in some]
    values = {
        "processes": [process for process, _ in needed],
        "tables": [one.table for _, one in needed],
        "privileges": [one.privilege for _, one in needed],
        "columns": [",".join(one.columns) for _, one in needed],
        "exclusive": [one.exclusive for _, one in needed],
    }
    on_tables = query(conn, args_row(Permission), CHECK_TABLES, values)
    return on_tables + query(conn, args_row(Permission), CHECK_SEQUENCES)


class Role(NamedTuple):
    """Our role in Postgres. sees_tables: it may use a schema of its search_path."""

    name: str
    quoted: str
    sees_tables: bool


ROLE = "SELECT current_user, quote_ident(current_user), current_schema() IS NOT NULL"


def postgres_permissions(installation: Installation) -> Result:
    """Check that our role may run the statements of the processes; missing tables are left out."""
    (role,) = query(installation.conn, args_row(Role), ROLE)
    if not role.sees_tables:
        return "failed", f"{role.name} may use no schema of its search_path: grant USAGE on one to it"

    def grants(missing: Sequence[Permission]) -> str:
        by_resource: dict[str, dict[str, None]] = {}
        for one in missing:
            by_resource.setdefault(one.resource, {})[one.privilege] = None
        return "run as the owner: " + "; ".join(
            f"GRANT {', '.join(privileges)} ON {resource} TO {role.quoted}"
            for resource, privileges in by_resource.items()
        )

    return judge_permissions(role.name, read_permissions(installation.conn), grants)


# ---- Kafka --------------------------------------------------------------------------------------

READ, WRITE = AclOperation.READ, AclOperation.WRITE
Operations = Sequence[Enum] | None  # that our user may do; None if that cannot be known


def kafka_acls(installation: Installation) -> Result:
    """Compare what the brokers let us do with what consumer and relay do.

    The brokers do not tell it for transactional ids: one is tried, see `kafka transactions`.
    """
    permissions = list(find_kafka_permissions(installation))
    state, text = judge_permissions(
        "this user", permissions, lambda missing: "grant " + permissions_text(missing)
    )
    is_relay = any(p.process == "relay" and p.identifies_process and p.granted for p in permissions)
    topic = installation.settings.input_topic
    allowed = topic_operations(installation, topic)
    if state == "ok" and is_relay and allowed is not None and WRITE not in allowed:
        advice = f"but not publish commands: before `dlq retry` grant Write on topic {topic}"
        return "warning", f"{text}, {advice}"
    return state, text


def permissions_text(permissions: Sequence[Permission]) -> str:
    """Return permissions as text."""
    return ", ".join(f"{one.privilege} on {one.resource}" for one in permissions)


def find_kafka_permissions(installation: Installation) -> Iterator[Permission]:
    """Yield what the processes need in Kafka, and whether our user has it."""
    s, marker_groups = installation.settings, find_marker_group(installation)
    operations = {
        f"topic {name}": topic_operations(installation, name)
        for name in (s.input_topic, s.output_topic, s.dead_letter_topic, s.marker_topic)
    }
    groups = [s.consumer_group, *marker_groups]
    operations |= {f"group {name}": some for name, some in group_operations(installation, groups)}
    for process, resource, needed, identifies_process in (
        ("consumer", f"topic {s.input_topic}", READ, False),
        ("consumer", f"group {s.consumer_group}", READ, True),
        ("relay", f"topic {s.output_topic}", WRITE, True),
        ("relay", f"topic {s.dead_letter_topic}", WRITE, True),
        ("relay", f"topic {s.marker_topic}", READ, False),
        *(("relay", f"group {name}", READ, True) for name in marker_groups),
    ):
        allowed = operations[resource]
        granted = None if allowed is None else needed in allowed
        yield Permission(process, resource, needed.name.title(), identifies_process, granted)


def find_marker_group(installation: Installation) -> list[str]:
    """Return the marker group, unless its name is not known: the consumer's role may not read it."""
    with suppress(Unreachable, DatabaseNotReady, psycopg.errors.InsufficientPrivilege):
        return [marker_group(read_identity(installation.conn))]
    return []


def topic_operations(installation: Installation, name: str) -> Operations:
    """Return what our user may do with a topic: nothing if it is hidden; None if it is missing."""
    if name in installation.topics:
        operations: Operations = installation.topics[name].authorized_operations
        return operations or []
    return [] if name in installation.hidden_topics else None


def group_operations(
    installation: Installation, groups: Sequence[str]
) -> Iterator[tuple[str, Operations]]:
    """Yield each group with what our user may do with it."""
    requests: Mapping[str, Future[ConsumerGroupDescription]] = (
        installation.admin.describe_consumer_groups(
            list(groups), include_authorized_operations=True, request_timeout=REQUEST_S
        )
    )
    for group, request in requests.items():
        try:
            operations: Operations = request.result().authorized_operations
            yield group, operations or []
        except KafkaException as error:
            code = error.args[0].code()
            if code == KafkaError.GROUP_AUTHORIZATION_FAILED:
                yield group, []
            elif code in COORDINATOR_MOVES:
                yield group, None
            else:
                raise
