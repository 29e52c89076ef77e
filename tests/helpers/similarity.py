"""How alike two texts are: by edits, and by the order of words."""

import bisect


def edit_similarity(one: str, other: str) -> float:
    """1 - edits / length of the longer text; white space counts as one space (Myers 1999, bit-parallel)."""
    a, b = " ".join(one.split()), " ".join(other.split())
    if not a or not b:
        return float(a == b)
    places: dict[str, int] = {}
    for place, letter in enumerate(a):
        places[letter] = places.get(letter, 0) | 1 << place
    mask, last = (1 << len(a)) - 1, 1 << len(a) - 1
    plus, minus, distance = mask, 0, len(a)
    for letter in b:
        match = places.get(letter, 0)
        diagonal = (((match & plus) + plus) ^ plus) | match | minus
        up, down = minus | ~(diagonal | plus) & mask, plus & diagonal
        distance += bool(up & last) - bool(down & last)
        up, down = (up << 1 | 1) & mask, down << 1 & mask
        plus, minus = down | ~(diagonal | up) & mask, up & diagonal
    return 1 - distance / max(len(a), len(b))


def order_similarity(truth: str, text: str) -> float:
    """The share of the truth's triples of words whose order is kept: the longest increasing run of their places."""
    words, found = truth.split(), text.split()
    where: dict[tuple[str, ...], list[int]] = {}
    for place in range(len(found) - 2):
        where.setdefault(tuple(found[place : place + 3]), []).append(place)
    wanted = [tuple(words[place : place + 3]) for place in range(len(words) - 2)]
    if not wanted:
        return float(words == found)
    used = {triple: iter(places) for triple, places in where.items()}
    places = [place for triple in wanted if triple in used and (place := next(used[triple], None)) is not None]
    tails: list[int] = []
    for place in places:
        at = bisect.bisect_left(tails, place)
        tails[at : at + 1] = [place]
    return len(tails) / len(wanted)
