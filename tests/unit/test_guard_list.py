"""The guards that are taken out: all that the model names, and each still where its entry says."""

import re

import pytest

from tests.guards import GUARDS, ONLY_IN_MODEL, ROOT, Guard

MODEL = "\n".join(path.read_text() for path in (ROOT / "docs/model").glob("*.tla"))


def test_every_guard_of_the_model_is_taken_out_of_the_code() -> None:
    in_model = set(re.findall(r'Has\("([^"]+)"\)', MODEL))
    assert len(in_model) > 20
    named = {guard.in_model or guard.name for guard in GUARDS}
    assert in_model - named == ONLY_IN_MODEL.keys(), "add an entry to tests/guards.py"
    assert {guard.in_model for guard in GUARDS if guard.in_model} <= in_model


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
def test_a_guard_is_where_its_entry_says(guard: Guard) -> None:
    assert guard.old in (ROOT / guard.file).read_text()
    assert (ROOT / guard.test.replace("::", " ").split()[0]).exists()
