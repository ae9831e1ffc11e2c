"""The check of `doctor` on the permissions of our role in Postgres."""

from collections.abc import Sequence
from typing import NamedTuple

from psycopg.rows import args_row

from orchestrator.operations.doctor.check import Installation, Result
from orchestrator.operations.doctor.permissions import Permission, judge_permissions
from outbox import Connection, query
from outbox.admin import RELAY_PERMISSIONS, WRITER_PERMISSIONS, TablePermission

# As in schema/roles.sql.
SCHEMA_VERSION = TablePermission("orchestrator_migrations", "SELECT", ("version", "checksum"))
TABLE_PERMISSIONS = {
    "consumer": (
        TablePermission(
            "workers", "INSERT", ("worker_id", "scenario_uuid", "camera_url"), exclusive=True
        ),
        TablePermission("workers", "SELECT", ("worker_id",)),
        *WRITER_PERMISSIONS,
        TablePermission("consumed_offsets", "SELECT"),
        TablePermission(
            "consumed_offsets", "INSERT", ("topic", "partition", "topic_id", "next_offset")
        ),
        TablePermission(
            "consumed_offsets",
            "UPDATE",
            ("next_offset", "leader_epoch", "decided_end", "decide_again", "refusal", "cut_at"),
        ),
        TablePermission("dead_letters_handled", "SELECT", ("origin",)),
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
           privilege || coalesce(' (' || pg_catalog.array_to_string(columns, ', ') || ')', ''),
           exclusive,
           pg_catalog.has_table_privilege(relation, privilege)
               OR columns IS NOT NULL
                  AND (SELECT bool_and(pg_catalog.has_column_privilege(relation, wanted, privilege))
                         FROM pg_catalog.unnest(columns) AS wanted)
      FROM unnest(%(processes)s::text[], %(tables)s::text[], %(privileges)s::text[],
                  %(columns)s::text[], %(exclusive)s::bool[])
           AS needed (process, name, privilege, listed, exclusive),
           pg_catalog.to_regclass(name) AS relation,
           pg_catalog.string_to_array(nullif(listed, ''), ',') AS columns
     WHERE relation IS NOT NULL
"""
# Where the ids of workers come from: of an adopted table perhaps from no SERIAL, or no sequence at all.
# The consumer also compares the sequence of the outbox with its rows.
CHECK_SEQUENCES = """
    SELECT process, 'SEQUENCE ' || pg_class.oid::regclass::text, privilege, exclusive,
           pg_catalog.has_sequence_privilege(pg_class.oid, any_of)
      FROM (VALUES ('consumer', 'USAGE', true, 'USAGE, UPDATE'),
                   ('relay', 'SELECT', false, 'SELECT, USAGE')
           ) AS needed (process, privilege, exclusive, any_of)
     CROSS JOIN pg_attrdef
      JOIN pg_depend ON classid = 'pg_attrdef'::regclass::oid AND objid = pg_attrdef.oid
      JOIN pg_class ON pg_class.oid = refobjid AND relkind = 'S'
     WHERE adrelid = pg_catalog.to_regclass('workers')::oid
 UNION ALL
    SELECT 'consumer', 'SEQUENCE ' || sequence::text, 'SELECT', false,
           pg_catalog.has_sequence_privilege(sequence, 'SELECT')
      FROM pg_catalog.to_regclass('outbox_id_seq') AS sequence
     WHERE sequence IS NOT NULL
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


ROLE = "SELECT current_user, pg_catalog.quote_ident(current_user), current_schema() IS NOT NULL"


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
