"""Array parameters: what Postgres reads is what was meant."""

from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outbox import arrays
from testkit.system import System

TEXT = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]))
BIGINT = st.integers(-(2**63), 2**63 - 1)
SMALLINT = st.integers(-(2**15), 2**15 - 1)


@pytest.mark.parametrize(
    ("sql", "make", "values"),
    [
        ("SELECT %b::uuid[]", arrays.uuids, st.lists(st.none() | st.uuids())),
        ("SELECT %b::text[]", arrays.texts, st.lists(st.none() | TEXT)),
        ("SELECT %b::bytea[]", arrays.byteas, st.lists(st.none() | st.binary())),
        ("SELECT %b::bigint[]", arrays.bigints, st.lists(BIGINT)),
        ("SELECT %b::smallint[]", arrays.smallints, st.lists(SMALLINT)),
    ],
    ids=["uuid", "text", "bytea", "bigint", "smallint"],
)
def test_an_array_arrives_as_it_was(
    system: System,
    sql: str,
    make: Callable[[Iterable[Any]], arrays.Array],
    values: st.SearchStrategy[list[Any]],
) -> None:
    with closing(system.connect()) as conn:

        @settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=50)
        @given(values)
        def arrives(sent: list[Any]) -> None:
            assert conn.execute(sql.encode(), [make(sent)]).fetchone() == (sent,)

        arrives()
