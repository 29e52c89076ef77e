"""Gutters: stretches of x that neighbouring strips leave free, with text on both sides.

for region, gutters in find_regions(strips): ...
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence

from qwen3_jax.data.extraction.pieces import TAB, Gap, Piece, Strip, middle_of

_GUTTER = 0.6  # least width, in heights of a line
_LOOK_AHEAD = 12  # strips, in which a gutter must have two lines with text on both sides
_INFINITE = float("inf")


def find_regions(strips: list[Strip]) -> list[tuple[list[Strip], list[Gap]]]:
    """Strips in a row that leave the same gutters free, with those; strips without one together with their neighbours."""
    found: list[tuple[list[Strip], list[Gap]]] = []
    least = _GUTTER * statistics.median(piece.height for strip in strips for piece in strip)
    place = 0
    while place < len(strips):
        region, free = [strips[place]], _free(strips[place])
        gutters = _inner(free, strips[place : place + _LOOK_AHEAD], [], least)
        ends_text = len(region[0]) == 1 and place > 0 and _goes_on(strips[place - 1], region[0])
        place += 1
        while place < len(strips) and not ends_text:
            strip = _split(strips[place], gutters)
            both = _common(free, _free(strip))
            region.append(strip)
            ahead = itertools.chain(region, strips[place + 1 : place + _LOOK_AHEAD])
            inner = _inner(both, ahead, gutters, least)
            if not inner:
                region.pop()
                break
            free, gutters = both, inner
            place += 1
        kept = _without_tail(region, gutters)
        place -= len(region) - len(kept)
        found += _without_head(kept, [gutter for gutter in gutters if _narrowed(gutter, kept, least) == gutter], least)
    out: list[tuple[list[Strip], list[Gap]]] = []
    for number, (region, gutters) in enumerate(found):
        if gutters and _is_in_text(region, gutters, found[number - 1 : number] + found[number + 1 : number + 2]):
            gutters = []
        if not gutters and out and not out[-1][1]:
            out[-1][0].extend(region)
        else:
            out.append((region, gutters))
    return out


def _without_head(region: list[Strip], gutters: list[Gap], least: float) -> list[tuple[list[Strip], list[Gap]]]:
    """A region, its first lines apart if they are a heading, which crosses gutters that the lines below have."""
    start = next((place for place, strip in enumerate(region) if len(strip) > 1), 0)
    if not gutters or not start:
        return [(region, gutters)]
    free = _free(region[start])
    for strip in region[start + 1 :]:
        free = _common(free, _free(strip))
    more = [gap for gap in free if gap[1] - gap[0] >= least and _narrowed(gap, region[start:], least) == gap]
    if len(more) <= len(gutters):
        return [(region, gutters)]
    heads = [piece for strip in region[:start] for piece in strip]
    crossed = any(piece.left < end and piece.right > begin for piece in heads for begin, end in more)
    return [(region[:start], []), (region[start:], more)] if crossed else [(region, more)]


def _without_tail(region: list[Strip], gutters: list[Gap]) -> list[Strip]:
    """Less the strips at the end that are text below the columns: on one side, set off by a gap, none filling the column."""
    if not gutters:
        return region
    first = gutters[0]
    two_sided = [strip[0].right <= first[0] and strip[-1].left >= gutters[-1][1] for strip in region]
    last = max((place for place, both in enumerate(two_sided) if both), default=-1)
    tail = region[last + 1 :]
    if last < 0 or not tail:
        return region
    distances = [middle_of(below) - middle_of(above) for above, below in itertools.pairwise(region[: last + 1])]
    usual = statistics.median(distances) if distances else 1.2 * region[0][0].height
    width = max(first[0] - min(strip[0].left for strip in region), 1.0)
    fills = any(piece.right - piece.left >= 0.9 * width for strip in tail for piece in strip)
    set_off = middle_of(tail[0]) - middle_of(region[last]) > 1.5 * usual
    return region[: last + 1] if set_off and not fills else region


def _goes_on(above: Strip, below: Strip) -> bool:
    """Whether a line is the next one of running text."""
    height = above[0].height
    begins = abs(below[0].left - above[0].left) < 2 * height
    return len(above) == 1 and begins and middle_of(below) - middle_of(above) < 1.7 * height


def _split(strip: Strip, gutters: list[Gap]) -> Strip:
    """The strip with pieces cut that cross a gutter where a word ends: the gutter is no wider than the gaps of that line."""
    if not any(piece.left < begin and piece.right > end for piece in strip for begin, end in gutters):
        return strip
    out = []
    for piece in strip:
        start = 0
        for place, (before, word) in enumerate(itertools.pairwise(piece.words), 1):
            if any(before.right <= end and word.left >= begin and word.left - before.right >= 0.7 * (end - begin)
                   for begin, end in gutters):  # fmt: skip
                out.append(Piece(piece.words[start:place], piece.place))
                start = place
        out.append(Piece(piece.words[start:], piece.place))
    return out


def _is_in_text(region: list[Strip], gutters: list[Gap], beside: list[tuple[list[Strip], list[Gap]]]) -> bool:
    """Whether gutters are chance gaps in two or three lines of running text: the line before or after has none."""
    height = region[0][0].height
    if len(region) > 3 or max(end - begin for begin, end in gutters) > TAB * height:
        return False
    for strips, others in beside:
        strip = min(strips, key=lambda strip: abs(middle_of(strip) - middle_of(region[0])))
        near = min(abs(middle_of(strip) - middle_of(one)) for one in region) < 1.7 * height
        if (
            not others
            and near
            and len(strip) == 1
            and all(strip[0].left < begin and strip[0].right > end for begin, end in gutters)
        ):
            return True
    return False


def _free(strip: Strip) -> list[Gap]:
    """Stretches of x, in order, that no piece covers."""
    out, end = [], -_INFINITE
    for piece in strip:
        if piece.left > end:
            out.append((end, piece.left))
        end = max(end, piece.right)
    return [*out, (end, _INFINITE)]


def _common(one: Sequence[Gap], other: Sequence[Gap]) -> list[Gap]:
    """What lies in both."""
    out = []
    i = j = 0
    while i < len(one) and j < len(other):
        begin, end = max(one[i][0], other[j][0]), min(one[i][1], other[j][1])
        if begin < end:
            out.append((begin, end))
        if one[i][1] < other[j][1]:
            i += 1
        else:
            j += 1
    return out


def _inner(free: list[Gap], strips: Iterable[Strip], known: list[Gap], least: float) -> list[Gap]:
    """The free stretches that continue as gutters: those within known ones, and those with text on both sides in the strips.
    Those without an end are looked at only where there is no other."""
    wide = [gap for gap in free if gap[1] - gap[0] >= least]
    is_known = [any(start <= begin and end <= far for start, far in known) for begin, end in wide]
    is_finite = [end - begin < _INFINITE for begin, end in wide]
    alone = not any(one and finite for one, finite in zip(is_known, is_finite, strict=True))
    ahead: list[Strip] = []
    out = []
    for gap, one, finite in zip(wide, is_known, is_finite, strict=True):
        if one and (finite or not alone):
            out.append(gap)
        elif finite or alone:
            ahead = ahead or list(strips)
            if _narrowed(gap, ahead, least):
                out.append(gap)
    return out


def _narrowed(gap: Gap, strips: Sequence[Strip], least: float) -> Gap | None:
    """What text on both sides leaves of a gap when there are two lines with text on both; None if it is less than the least."""
    begin, end = gap
    lines = 0
    for strip in strips:
        parted = 0
        for piece in strip:
            if piece.right <= end - least:
                begin = max(begin, piece.right)
                parted += 1
            else:
                end = min(end, piece.left)
            if end - begin < least:
                return None
        if 0 < parted < len(strip):
            lines += _lines_on_both(strip, end)
            if lines > 1:
                return begin, end
    return None


def _lines_on_both(strip: Strip, edge: float) -> int:
    """The number of lines of a strip to the left of an edge, or to the right if there are fewer."""
    if len(strip) == 2:
        return 1
    left, right = (
        {round(piece.bottom / piece.height * 2) for piece in strip if (piece.left < edge) == is_left}
        for is_left in (True, False)
    )
    return min(len(left), len(right))
