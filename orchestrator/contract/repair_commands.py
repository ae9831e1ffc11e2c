"""The commands that repair what is refused, as processes and other commands name them."""


def repair_of_lane(lane: int) -> str:
    """Return the command that repairs a refused lane."""
    return f"orchestrator repair lane {lane}"


def repair_of_partition(partition: int) -> str:
    """Return the command that repairs a refused partition."""
    return f"orchestrator repair partition {partition}"
