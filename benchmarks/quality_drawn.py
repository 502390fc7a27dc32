"""Tasks of quality.py with as many questions as wanted, drawn from lists of facts and names.

Twelve questions tell two adapters apart only where one of them is much better. These tasks are like
"thought" and "people" of quality_tasks.py and quality_held_out.py, and have their demonstrations.
"""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import dspy
from quality_data import is_one_of
from quality_held_out import Guest, Guests, people_rows
from quality_tasks import N_DEMOS, QUESTIONS, Question, Task, rows_of

NUMBERS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
    "twenty",
]  # fmt: skip

CAPITALS = {
    "Austria": "Vienna", "Belgium": "Brussels", "Canada": "Ottawa", "Chile": "Santiago",
    "China": "Beijing", "Cuba": "Havana", "Denmark": "Copenhagen", "Egypt": "Cairo",
    "England": "London", "Finland": "Helsinki", "Germany": "Berlin", "Greece": "Athens",
    "Hungary": "Budapest", "Iran": "Tehran", "Iraq": "Baghdad", "Ireland": "Dublin",
    "Italy": "Rome", "Kenya": "Nairobi", "Norway": "Oslo", "Peru": "Lima", "Poland": "Warsaw",
    "Portugal": "Lisbon", "Russia": "Moscow", "Scotland": "Edinburgh", "South Korea": "Seoul",
    "Sweden": "Stockholm", "Syria": "Damascus", "Thailand": "Bangkok",
}  # fmt: skip
OPPOSITES = {
    "big": "small", "black": "white", "clean": "dirty", "day": "night", "dry": "wet",
    "early": "late", "easy": "hard", "empty": "full", "fast": "slow", "first": "last",
    "good": "bad", "happy": "sad", "heavy": "light", "high": "low", "inside": "outside",
    "left": "right", "long": "short", "loud": "quiet", "new": "old", "open": "closed",
    "rich": "poor", "strong": "weak", "tall": "short", "true": "false", "young": "old",
}  # fmt: skip
LARGER = [
    ("an ant", "a dog"), ("a bee", "an elephant"), ("a cat", "a whale"), ("a cup", "a house"),
    ("a fly", "a cow"), ("a grape", "a melon"), ("a lake", "an ocean"), ("a village", "a city"),
    ("a hill", "a mountain"), ("a bicycle", "a bus"), ("a spoon", "a table"), ("a rat", "a lion"),
]  # fmt: skip
FACTS = {
    "Which animal meows?": "cat", "Which animal gives us milk and moos?": "cow",
    "Which animal has a long trunk?": "elephant", "Which animal gives us wool?": "sheep",
    "Which insect makes honey?": "bee", "What colour is grass?": "green",
    "What colour is snow?": "white", "What colour is a ripe banana?": "yellow",
    "What colour is blood?": "red", "How many legs does a spider have?": "8",
    "How many legs does a cat have?": "4", "How many wheels does a bicycle have?": "2",
    "How many months are in a year?": "12", "How many fingers are on one hand?": "5",
    "How many sides does a triangle have?": "3", "How many sides does a square have?": "4",
    "Which planet do we live on?": "Earth", "Which star gives us light by day?": "sun",
    "What do we call frozen water?": "ice", "Which season is the hottest?": "summer",
    "Which day comes after Monday?": "Tuesday", "Which month comes after March?": "April",
    "Which meal do people eat in the morning?": "breakfast",
    "What do you call a baby dog?": "puppy", "Which drink is made from grapes?": "wine",
}  # fmt: skip

NAMES = [
    "Abel", "Berta", "Cyril", "Delia", "Edgar", "Flora", "Gustav", "Helga", "Igor", "Julia",
    "Kevin", "Laura", "Milan", "Nadia", "Otto", "Petra", "Ralf", "Sonja", "Theo", "Ursula",
    "Viktor", "Wanda", "Xaver", "Yvonne", "Zora",
]  # fmt: skip
TEXTS = [
    ("{0} is {1}.", 1), ("{0}, {1}, lives alone.", 1), ("Our guest {0} is {1} years old.", 1),
    ("{0} is {1} and {2} is {3}.", 2), ("{0} ({1}) married {2} ({3}).", 2),
    ("At {1}, {0} is our oldest member; {2} is {3}.", 2), ("{0}, {1}, works with {2}, {3}.", 2),
    ("{0} turned {1} in May, and {2} was {3} in June.", 2),
    ("{0} is {1}, {2} is {3} and {4} is {5}.", 3),
    ("The children are {0} ({1}), {2} ({3}) and {4} ({5}).", 3),
]  # fmt: skip


def drawn(count: int, seed: int) -> list[Task]:
    """The tasks, with so many questions of each."""
    chosen = random.Random(seed)
    demonstrations = rows_of("question reasoning answer", QUESTIONS[:N_DEMOS])
    questions = [_question(chosen) for _ in range(20 * count)]
    # None is asked twice, so none counts double.
    distinct = [*{row["question"]: row for row in questions}.values()][:count]
    people = [_people(chosen) for _ in range(count)]
    return [
        Task("drawn thought", Question, demonstrations + distinct, dspy.ChainOfThought),
        Task("drawn people", Guests, people_rows()[:N_DEMOS] + people),
    ]


def _question(chosen: random.Random) -> dict[str, Any]:
    question, answer = chosen.choice((_sum, _sum, _capital, _opposite, _larger, _fact))(chosen)
    right = [answer]
    if answer.isdecimal() and int(answer) < len(NUMBERS):
        right.append(NUMBERS[int(answer)])
    accepts = {"answer": partial(is_one_of, right)}
    return {"question": question, "answer": answer, "accepts": accepts}


def _sum(chosen: random.Random) -> tuple[str, str]:
    a, b = sorted(chosen.sample(range(1, 13), 2))
    return chosen.choice(
        [
            (f"What is {a} plus {b}?", str(a + b)),
            (f"What is {b} minus {a}?", str(b - a)),
            (f"What is {a} times {b}?", str(a * b)),
        ]
    )


def _capital(chosen: random.Random) -> tuple[str, str]:
    country, capital = chosen.choice([*CAPITALS.items()])
    return f"What is the capital of {country}?", capital


def _opposite(chosen: random.Random) -> tuple[str, str]:
    word, other = chosen.choice([*OPPOSITES.items()])
    return f"What is the opposite of {word}?", other


def _larger(chosen: random.Random) -> tuple[str, str]:
    small, large = chosen.choice(LARGER)
    pair = chosen.sample((small, large), 2)
    return f"Which is larger, {pair[0]} or {pair[1]}?", large.split()[-1]


def _fact(chosen: random.Random) -> tuple[str, str]:
    return chosen.choice([*FACTS.items()])


def _people(chosen: random.Random) -> dict[str, Any]:
    text, n = chosen.choice(TEXTS)
    ages = [chosen.randrange(3, 95) for _ in range(n)]
    names = chosen.sample(NAMES, n)
    guests = [Guest(name=name, age=age) for name, age in zip(names, ages, strict=True)]
    values = [value for pair in zip(names, ages, strict=True) for value in pair]
    return {"text": text.format(*values), "people": guests}
