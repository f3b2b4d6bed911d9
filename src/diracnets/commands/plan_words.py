"""A plan in words: the rows of its table, where scaling stops, and numbers in the units that suit them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diracnets.analysis.plan import Plan


COLUMNS = ["devices", "batch", "a device", "step", "images/s", "efficiency", "memory", "epoch", "run", "limits"]


def worth_a_line(rows: list[Plan], chosen: int) -> list[Plan]:
    """All numbers of devices up to the first that leaves some without images, and the chosen one."""
    idle = [row.devices for row in rows if row.batch_per_device < 1]
    return [row for row in rows if row.devices == chosen or not idle or row.devices <= idle[0]]


def row_of(found: Plan) -> list[object]:
    """A row of the table, for `COLUMNS`."""
    return [
        found.devices,
        found.batch,
        f"{found.batch_per_device:g}" if found.batch_per_device >= 1 else f"{found.batch_per_device:.2g}",
        in_time(found.step),
        round(found.images_per_second) if found.images_per_second >= 10 else per_second(found.images_per_second),
        f"{found.efficiency:.0%}",
        in_bytes(sum(found.memory.values())),
        in_time(found.epoch),
        in_time(found.run),
        ", ".join(found.limits),
    ]


def ending_of(useful: int, stop: Plan | None) -> str:
    """Where more devices stop helping, and why."""
    if stop is None:
        return f"Scaling does not stop up to {counted(useful, 'device')}."
    reason = " and ".join(limit for limit in stop.limits if "memory" not in limit)
    return f"Scaling stops at {counted(useful, 'device')}: with {stop.devices:,}, {reason}."


def counted(count: int, thing: str) -> str:
    """So many of a thing: "1 core", "2 cores"."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def per_second(images: float) -> str:
    """Images per second, with two digits where there are few."""
    return f"{images:,.0f}" if images >= 10 else f"{images:.2g}"


def in_bytes(count: float) -> str:
    """Bytes as kB, MB, GB or TB.

    >>> in_bytes(20_472), in_bytes(1_474_920), in_bytes(3.2e10), in_bytes(8e14)
    ('20.5 kB', '1.5 MB', '32.0 GB', '800.0 TB')
    """
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e3:,.1f} kB"


def in_time(seconds: float) -> str:
    """A time in the unit that suits it.

    >>> in_time(0.0123), in_time(90), in_time(7200), in_time(864000), in_time(1e9)
    ('12.3 ms', '1.5 min', '2.0 h', '10.0 days', '31.7 years')
    """
    for unit, size in (("years", 365.25 * 86400), ("days", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= size * (2 if unit in ("days", "years") else 1):
            return f"{seconds / size:,.1f} {unit}"
    return f"{1000 * seconds:.1f} ms"
