"""Colours of stylesheets, and their contrast."""

import re


def themes(style: str) -> list[dict[str, str]]:
    """The colours #rrggbb by their names of each :root in a stylesheet: the light theme, then the dark one."""
    found = re.findall(r":root \{(.*?)\}", style, flags=re.DOTALL)
    assert len(found) == 2
    return [dict(re.findall(r"--([\w-]+): (#\w{6})", theme)) for theme in found]


def contrast(one: str, other: str) -> float:
    """Contrast of two colours #rrggbb, as WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def over(one: str, share: float, other: str) -> str:
    """A colour, by its share, over another one."""
    mixed = [share * int(one[i : i + 2], 16) + (1 - share) * int(other[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(part):02x}" for part in mixed)
