"""How figures and times are printed."""

from datetime import UTC, datetime


def duration(seconds: float) -> str:
    """Return a duration in a fitting unit: 12 ms, 3.4 s, 5.0 m, 2.1 h, 3.2 d."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    for unit, size, limit in (("s", 1, 120), ("m", 60, 7200), ("h", 3600, 172_800)):
        if seconds < limit:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 86_400:.1f} d"


def utc_text(at: datetime) -> str:
    """Return a time of any zone in UTC, to the second."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
