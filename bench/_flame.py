"""A sampler of Python stacks, and the flame graph of what it saw.

Samples come with processor time (SIGPROF), so waiting does not count. What is
written in C has no frame of its own: its time is that of the function that calls it.
"""

from __future__ import annotations

import signal
from collections import Counter
from html import escape
from types import CodeType, FrameType, TracebackType
from typing import Self

_WIDTH, _ROW, _CHARACTER = 1200, 18, 6.6
_COLOURS = ("#e8a33d", "#e07b39", "#d9a441", "#cf6f3c", "#e39b52")


class Sampler:
    """Counts stacks while its `with` block runs."""

    def __init__(self, seconds: float = 0.0005) -> None:
        self._seconds = seconds
        self._stacks: Counter[tuple[CodeType, ...]] = Counter()

    def __enter__(self) -> Self:
        signal.signal(signal.SIGPROF, self._take)
        signal.setitimer(signal.ITIMER_PROF, self._seconds, self._seconds)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)

    def _take(self, _number: int, frame: FrameType | None) -> None:
        stack = []
        while frame is not None:
            stack.append(frame.f_code)
            frame = frame.f_back
        self._stacks[tuple(reversed(stack))] += 1

    def svg(self, title: str, *, within: str) -> str:
        """The graph of everything that a function of that name called. Widths are shares of its time."""
        stacks: Counter[tuple[str, ...]] = Counter()
        for stack, count in self._stacks.items():
            names = [_name(code) for code in stack]
            if within in names:
                stacks[tuple(names[names.index(within) :])] += count
        total = sum(stacks.values())
        depth = max(map(len, stacks))
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {(depth + 2) * _ROW}" '
            'font-family="monospace" font-size="11">',
            f'<text x="4" y="13">{escape(title)}: {total} samples of processor time</text>',
        ]
        _draw(parts, sorted(stacks.items()), 0, 0.0, _WIDTH / total, depth)
        return "\n".join((*parts, "</svg>\n"))


def _name(code: CodeType) -> str:
    return code.co_qualname.replace(".<locals>", "") if hasattr(code, "co_qualname") else code.co_name


def _draw(
    parts: list[str], stacks: list[tuple[tuple[str, ...], int]], level: int, left: float, unit: float, depth: int
) -> None:
    at = left
    groups: dict[str, list[tuple[tuple[str, ...], int]]] = {}
    for stack, count in stacks:
        if len(stack) > level:
            groups.setdefault(stack[level], []).append((stack, count))
    for name, inside in groups.items():
        samples = sum(count for _, count in inside)
        width = samples * unit
        if width >= 1:
            top = (depth - level) * _ROW + _ROW
            colour = _COLOURS[sum(name.encode()) % len(_COLOURS)]
            label = name[: int(width / _CHARACTER)] if width > 3 * _CHARACTER else ""
            parts.append(
                f"<g><title>{escape(name)}: {samples * unit / _WIDTH:.1%}</title>"
                f'<rect x="{at:.1f}" y="{top}" width="{width:.1f}" height="{_ROW - 1}" fill="{colour}" rx="1"/>'
                f'<text x="{at + 3:.1f}" y="{top + 13}">{escape(label)}</text></g>'
            )
            _draw(parts, inside, level + 1, at, unit, depth)
        at += width
