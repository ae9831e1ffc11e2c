"""The commands that repair what is refused, as processes and other commands name them."""

from orchestrator.program import PROGRAM


def repair_of_lane(lane: int) -> str:
    """Return the command that repairs a refused lane."""
    return f"{PROGRAM} repair lane {lane}"


def repair_of_partition(partition: int) -> str:
    """Return the command that repairs a refused partition."""
    return f"{PROGRAM} repair partition {partition}"
