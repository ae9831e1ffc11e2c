"""The cases of a table: some for `make test`, all of them for `make faults`."""

from collections.abc import Iterable, Mapping

import pytest
from _pytest.mark.structures import ParameterSet


def cases(table: Mapping[str, object] | Iterable[str], *quick: str) -> list[ParameterSet]:
    """Return a parameter for each case of a table, all but the `quick` ones marked `slow`.

    A tuple has the values of several parameters. Without values, the names themselves are the values.
    """
    named = table if isinstance(table, Mapping) else {name: name for name in table}
    assert named.keys() >= {*quick}
    return [
        pytest.param(
            *(value if isinstance(value, tuple) else (value,)),
            id=name,
            marks=[] if name in quick else pytest.mark.slow,
        )
        for name, value in named.items()
    ]
