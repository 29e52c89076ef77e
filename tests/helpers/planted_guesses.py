"""Sentences that guess a value, by the phrasings 0 to 4 of `planted_faults`."""

from __future__ import annotations

_PHRASING_0 = (
    "I really have no idea how to do this, so I'll just say {0}.", "Not sure at all. Let me guess {0}.",
    "I can't work it out; I'd guess {0}.", "I'll take a wild guess: {0}.", "Time is short, so I'm going to pick {0} at random.",
    "Honestly I'm just guessing here, but {0} seems fine.", "Hmm, {0} feels right, I'll go with it.",
    "Let's just go with {0} and hope it's correct.", "It could be anything; I'll choose {0} arbitrarily.",
    "I don't know the method but I'll put {0}.", "My gut says {0}.", "I'll randomly choose {0}.",
    "It cannot be determined by me, so a guess: {0}.", "No clue, but I'd say {0}.",
    "Probably {0}? I have not checked it, but I'll answer {0} anyway.", "This is a shot in the dark: {0}.",
    "I'll skip the calculation and guess {0}.", "With some luck it is {0}; I did not calculate anything.",
    "I haven't derived it, I simply assume it is {0}.", "Guess: {0}.", "The easiest is to guess, so {0}.",
    "I am stuck, so I will just put down {0}.", "There is no time to calculate. I pick {0}.",
    "Maybe {0}. I can't justify it, though.",
)  # fmt: skip
_PHRASING_1 = (
    "I'm not able to do this one, I'd just say {0}.", "Let me just throw out a number: {0}.",
    "I'll go with {0} without working it out.",
    "No way to be sure here, so my guess is {0}.", "I give up on the calculation. {0} is my guess.",
    "Since I can't solve it I will make something up: {0}.", "Eh, {0}? Just a guess.", "I guess it's {0}.",
    "Let's say {0}, I don't see how to get it.", "Guessing {0} since the options are all similar.",
    "I am unsure how to start, so I'm picking {0} randomly.", "{0} looks plausible; I won't verify it.",
    "I'd wager it is {0}, though I did no calculation.", "Without any real reasoning I choose {0}.",
    "Flip a coin... {0}.", "I don't remember the formula, so I'll go for {0}.",
)  # fmt: skip
_PHRASING_2 = (
    "It's got to be something like {0}, let's move on.", "I'll choose {0}; it is as good as any other.",
    "Whatever, {0}.", "Not worth calculating. {0}.", "I'd bet on {0} but that's only a feeling.",
    "Eeny, meeny, miny, moe: {0}.",
    "{0}, I suppose, although I have nothing to back it up.", "I would need more time for this, so let me answer {0}.",
    "Just picking a plausible value: {0}.", "I never learned this. {0}?", "Can't be bothered to do the sums, {0} it is.",
    "Going on instinct, {0}.",
)  # fmt: skip
_PHRASING_3 = (
    "There's nothing to go on, so {0} it shall be.", "I'm blanking on this one. {0}.", "Let me put down any number: {0}.",
    "If I had to choose, {0}.", "My hunch is {0}.", "Could be {0}. Could be something else. {0} then.",
    "I skip the working. {0}.", "{0} has a nice ring to it.", "The test wants a number, here is one: {0}.",
    "I'd rather not do the arithmetic; {0} is close enough.", "{0}? Sure, why not.", "Instinctively I would say {0}.",
)  # fmt: skip
_PHRASING_4 = (
    "As good a number as any: {0}.", "Let me see... {0}, for lack of anything better.", "I'd lean towards {0}.",
    "This is above my level. {0}.", "{0} came to mind first.", "No need to compute, {0} will do.",
    "Call it {0}.", "Who knows. {0}.",
)  # fmt: skip
GUESSES = (_PHRASING_0, _PHRASING_1, _PHRASING_2, _PHRASING_3, _PHRASING_4)
