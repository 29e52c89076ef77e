"""Queries of several parts and of general writing, in the later of the words of `planted_faults`."""

from __future__ import annotations

import random


def several_parts(start: str, one: str, name: str, a: int) -> tuple[list[str], list[str]]:
    """Those that the rules were last written with, and those that they were not."""
    fresh = [
        f"{start} Report both the total and the average of the two days.",
        f"{start} Q1. Total sold? Q2. Average per day?",
        f"{start} Your tasks: - sum the two days - take their difference - divide the first by the second",
        f"{start} Let T be the total; express T, and the ratio of the days, as integers.",
        f"{start} How many were sold in all? If each costs {a % 7 + 2} euros, what did they bring in?",
        f"{one} And how would that change with twice as many?",
        f"{start} Fill in: total = ___, mean = ___.",
        f"{start} First I need the sum. After that, I need the larger of the two.",
        f"{start} Task 1: add the numbers; Task 2: multiply them.",
        f"{start} Say which day was better and why.",
    ]  # fmt: skip
    last = [
        f"{start} Two answers, please: the sum and the gap between the days.",
        f"{start} What did {name} sell altogether, and on average?",
        f"{start} Determine the total; from it derive the weekly figure.",
        f"{start} How big is the sum? Also, is it even?",
        f"{start} Total? Mean? Range?",
        f"{start} Begin by adding both days. Continue with the ratio.",
        f"{start} Compute (1) the total (2) the mean (3) the range.",
        f"{start} The first answer is the sum, the second one is the product. What are they?",
    ]  # fmt: skip
    return fresh, last


def writing(rng: random.Random, name: str, thing: str, place: str) -> tuple[list[str], list[str]]:
    """Those that the rules were last written with, and those that they were not."""
    fresh = [
        f"Some friendly words for {name}'s retirement from the {place}, please. {rng.randint(20, 80)} words at most.",
        f"You are a pirate. Greet the guests of the {place} and offer them {rng.randint(2, 40)} {thing}.",
        f"What would {name} say to {rng.randint(2, 40)} talking {thing}? Be creative.",
        f"Turn this into a polite message: '{name}, bring back my {rng.randint(2, 40)} {thing}!'",
        f"Suggest three names for a {place} that sells {thing}, each with a tagline.",
        f"A haiku on {rng.randint(2, 40)} {thing}.",
        f"Tell {name}'s story: a childhood in a {place}, {rng.randint(2, 40)} {thing}, a great loss.",
        f"Summarise your opinion of {place}s with {thing} in {rng.randint(2, 9)} sentences.",
        f"Outline a podcast episode on {thing} in the {place}.",
        f"Finish the scene: {name} walks into the {place} with {rng.randint(2, 40)} {thing} and",
    ]  # fmt: skip
    last = [
        f"Please praise {name}'s collection of {rng.randint(2, 40)} {thing}.",
        f"Can you congratulate {name}, who has opened a {place}, on {rng.randint(2, 40)} years?",
        f"Entertain me with {rng.randint(2, 40)} {thing} and a {place}.",
        f"Describe the smell of a {place} with {rng.randint(2, 40)} {thing}.",
        f"Why is the {place} your favourite place? Mention {rng.randint(2, 40)} {thing}.",
        f"Convince {name} to buy {rng.randint(2, 40)} {thing}.",
        f"Reword: '{name} was sad because the {place} had only {rng.randint(2, 40)} {thing}.'",
        f"What might a day without the {place} and its {rng.randint(2, 40)} {thing} look like for {name}?",
    ]  # fmt: skip
    return fresh, last
