"""math-verify's own verdicts on pairs, in the main thread of a process of its own, where its time limits work.

python -m tests.verifiers.math_peer < pairs.jsonl
"""

import json
import logging
import random
import sys

MATRIX = r"$\begin{{pmatrix}}1&2\\3&{}\end{{pmatrix}}$"
ANSWERS = [  # reference, right answers, wrong answers
    (r"$\frac{1}{2}$", [r"\boxed{0.5}", "So it is $1/2$.", "The answer is 0.5"], [r"\boxed{\frac{1}{3}}", "2"]),
    (r"$x^2+2x+1$", [r"\boxed{(x+1)^2}", "$1+2x+x^2$", r"$x\cdot x+2x+1$"], ["$x^2+1$", r"\boxed{(x-1)^2}", "$x+1$"]),
    (r"$\{1,2,3\}$", [r"\boxed{\{3,2,1\}}", r"$\{1, 2, 3\}$"], [r"$\{1,2\}$", r"\boxed{(1,2,4)}", "$1$"]),
    (r"$(1,2)$", [r"\boxed{(1,2)}", "$(1, 2)$"], ["$(2,1)$", r"$[1,2]$", "$1$"]),
    (r"$[0,\infty)$", [r"\boxed{[0,\infty)}", r"$[0, +\infty)$"], [r"$(0,\infty)$", r"$[0,1]$"]),
    (r"$\sqrt{8}$", [r"\boxed{2\sqrt{2}}", r"$2 \sqrt 2$", r"$8^{1/2}$"], [r"\boxed{2}", r"$\sqrt{6}$", "2.8"]),
    (r"$x=3$", [r"\boxed{3}", "$x=3$", "The answer is 3"], ["$x=4$", r"\boxed{-3}", "$y=2$"]),
    (r"$10\%$", [r"\boxed{10\%}", "$0.1$", "10%"], ["$20$", r"\boxed{0.2}"]),
    ("1234", ["1,234", "The answer is 1234.", r"\boxed{1234}", "$1234.0$"], ["12345", r"\boxed{123}", "0"]),
    ("-7/3", [r"\boxed{-\frac{7}{3}}", "$-7/3$", r"$-2\frac{1}{3}$"], ["7/3", r"\boxed{-\frac{3}{7}}"]),
    (MATRIX.format(4), [r"\boxed{" + MATRIX.format(4).strip("$") + "}"], [MATRIX.format(5)]),
    (r"$3+4i$", [r"\boxed{4i+3}", "$3+4i$"], ["$3-4i$", "$7i$"]),
    (r"$x<5$", [r"\boxed{x<5}", "$5>x$"], ["$x>5$", r"$x\le 5$"]),
    (r"$\pi/4$", [r"\boxed{\frac{\pi}{4}}", r"$0.25\pi$"], [r"$\pi$", "0.7853"]),
    (r"$\log_2 8$", [r"\boxed{3}", "$3$"], ["$8$", "2"]),
    (r"$2^{10}$", ["1024", r"\boxed{2^{10}}"], ["1023", "$2^{11}$"]),
    (r"$\text{even}$", [r"\boxed{\text{even}}"], [r"\boxed{\text{odd}}", "4"]),
    (r"$\sin(x)^2+\cos(x)^2$", [r"\boxed{1}"], [r"\boxed{0}", "$x$"]),
    (r"$a=1, b=2$", ["$a=1, b=2$", r"\boxed{a=1, b=2}"], ["$a=2, b=1$"]),
    (r"$5!$", ["120", r"\boxed{120}"], ["24", "$5$"]),
]  # fmt: skip
WRAPS = [
    "{}",
    "So {} then.",
    "Therefore, the final answer is {}. I hope it is correct.",
    "First $y=7$.\n\nThen {}",
    "no answer",
    "**{}**",
]


def pairs(number, seed=0):
    """(answer, reference) pairs."""
    draw = random.Random(seed)
    made = []
    for _ in range(number):
        reference, right, wrong = draw.choice(ANSWERS)
        made.append((draw.choice(WRAPS).format(draw.choice(draw.choice([right, wrong]))), reference))
    return made


HOSTILE = (  # of a depth and a size
    lambda deep, size: "$" + r"\frac{1}{" * deep + "1" + "}" * deep + "$",
    lambda deep, size: "$" + "(" * deep + "1" + ")" * deep + "$",
    lambda deep, size: "$" + r"\sqrt{" * deep + "2" + "}" * deep + "$",
    lambda deep, size: "$" + "{" * deep + "$",
    lambda deep, size: r"\boxed{" * deep + "1",
    lambda deep, size: f"${size}^{{{size}^{{{size}^{{{size}}}}}}}$",
    lambda deep, size: f"${size * 1000}!!$ and ${10**size}!$",
    lambda deep, size: "$" + "+".join(f"x_{{{i}}}^{{{i}}}" for i in range(deep)) + "$",
    lambda deep, size: f"$(x+y+z)^{{{deep}}}$",
    lambda deep, size: rf"$\int_0^\infty e^{{-x^{{{size}}}}} \sin(x^x) dx$",
    lambda deep, size: rf"$\sum_{{i=1}}^{{10^{{{size}}}}} \frac{{1}}{{i!}}$",
    lambda deep, size: "$" + "1" * deep * 50 + "$",
    lambda deep, size: "9**9**9**9",
    lambda deep, size: "$" + r"\left(" * deep + "$",
    lambda deep, size: "answer is " * deep + "=" * deep,
    lambda deep, size: "$\x00\ud800" + chr(size * 999) * deep + "$",
    lambda deep, size: r"$\begin{pmatrix}" + "&".join("1" * deep) + r"\end{pmatrix}$",
    lambda deep, size: rf"$\lim_{{x \to 0}} x^{{x^{{x^{{{size}}}}}}}$",
)


def hostile(number, seed=0):
    """(answer, reference) pairs that make a verifier hang, or end for lack of memory or stack."""
    draw = random.Random(seed)
    answers = [HOSTILE[i % len(HOSTILE)](draw.choice([50, 300, 2000]), draw.choice([2, 9, 99])) for i in range(number)]
    return [(answer, "$2$") for answer in answers]


def main():
    from math_verify import parse, verify

    logging.disable()
    for line in sys.stdin:
        answer, reference = json.loads(line)
        found = parse(answer)
        print(json.dumps([bool(verify(parse(reference), found)), bool(found)]), flush=True)


if __name__ == "__main__":
    main()
