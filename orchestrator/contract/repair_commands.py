"""The commands that put right what is refused, as processes and other commands name them."""


def repair_of_lane(lane: int) -> str:
    """Name the command that lets a refused lane go on."""
    return f"orchestrator repair lane {lane}"


def repair_of_partition(partition: int) -> str:
    """Name the command that lets a paused partition go on."""
    return f"orchestrator repair partition {partition}"
