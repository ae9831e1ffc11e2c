"""The permissions of a login, and which process it is for.

Consumer and relay may have a login each, and the operator a third one (docs/security.md). So a missing
permission is reported only for a process for which this login is evidently used: it has a permission
that only that process needs.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from orchestrator.operations.doctor.check import Result

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
