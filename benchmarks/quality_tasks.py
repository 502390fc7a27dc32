"""The tasks of quality.py: signatures, and texts made for it, each with the answer that is right.

A task's examples all have known answers. The first five are the demonstrations, the others are
asked. quality_data.py has the tasks on public data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import dspy
import pydantic

N_DEMOS = 5
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Task:
    """What is asked, and what is right.

    rows         inputs and right outputs: N_DEMOS for demonstrations, then those that are asked;
                 "accepts" has by output what tells whether a value is right, where several are
    program      makes the module that answers
    takes_demos  whether its answers can be shown in demonstrations
    """

    name: str
    signature: Any
    rows: Rows
    program: Callable[[Any], dspy.Module] = dspy.Predict
    takes_demos: bool = True

    def module(self, n_demos: int) -> dspy.Module:
        """The program, with some demonstrations."""
        module = self.program(self.signature)
        if n_demos:
            (predict,) = module.predictors()
            fields = {*self.signature.fields, "reasoning"}
            predict.demos = [
                dspy.Example({name: row[name] for name in fields if name in row}).with_inputs(
                    *self.signature.input_fields
                )
                for row in self.rows[:n_demos]
            ]
        return module

    def asked(self) -> Rows:
        """The rows that are no demonstrations."""
        return self.rows[N_DEMOS:]

    def inputs(self, row: dict[str, Any]) -> dict[str, Any]:
        """What a row asks."""
        return {name: row[name] for name in self.signature.input_fields}

    def right(self, row: dict[str, Any], prediction: Any) -> tuple[int, int]:
        """How many of a row's outputs are right, and how many there are."""
        names = [name for name in self.signature.output_fields if name in row]
        names = [name for name in names if name != "reasoning"]
        accepts = row.get("accepts", {})
        n_right = 0
        for name in names:
            given = getattr(prediction, name, None)
            n_right += accepts[name](given) if name in accepts else same(row[name], given)
        return n_right, len(names)


def same(wanted: Any, given: Any) -> bool:
    """Whether a value is right. A text is, if it has the words wanted and few others."""
    if isinstance(wanted, str) and isinstance(given, str):
        words, found = _words(wanted), _words(given)
        if len(found) > 2 * len(words) + 8:
            return False
        return any(found[i : i + len(words)] == words for i in range(len(found)))
    if isinstance(wanted, list) and isinstance(given, list):
        return sorted(map(_plain, wanted)) == sorted(map(_plain, given))
    if isinstance(wanted, dspy.ToolCalls) and isinstance(given, dspy.ToolCalls):
        return _calls(wanted) == _calls(given)
    return bool(wanted == given)


def _words(text: str) -> list[str]:
    found = re.findall(r"[\w.]+", text.lower().replace(",", ""))
    words = [word.strip(".") for word in found]
    return [word for word in words if word not in ("", "a", "an", "the")]


def _plain(item: Any) -> str:
    values = item.model_dump() if isinstance(item, pydantic.BaseModel) else item
    return json.dumps(values, sort_keys=True).lower()


def _calls(calls: dspy.ToolCalls) -> list[tuple[str, str]]:
    return [(call.name, json.dumps(call.args, sort_keys=True).lower()) for call in calls.tool_calls]


# Extraction


class Person(dspy.Signature):
    """Extract the person's name, the city they live in, and the year they were born."""

    text: str = dspy.InputField()
    name: str = dspy.OutputField()
    city: str = dspy.OutputField()
    year: int = dspy.OutputField(desc="year of birth")


PERSONS = [
    ("Mira Holt, born in 1974, bakes bread in Ghent.", "Mira Holt", "Ghent", 1974),
    ("In Turin lives Aldo Conti, a watchmaker. He was born in 1951.", "Aldo Conti", "Turin", 1951),
    ("My neighbour here in Bergen is Ida Solberg (born 1988).", "Ida Solberg", "Bergen", 1988),
    ("Born in 1990, Peter Quill paints doors in Leeds.", "Peter Quill", "Leeds", 1990),
    ("The pianist Jun Abe was born in 1966 and lives in Osaka.", "Jun Abe", "Osaka", 1966),
    ("Clara Weiss was born in 1972. She runs a bookshop in Vienna.", "Clara Weiss", "Vienna", 1972),
    ("Tom Baker lives in Boston and was born in 1985.", "Tom Baker", "Boston", 1985),
    ("A teacher from Lisbon, Rui Matos, born in 1979, won the race.", "Rui Matos", "Lisbon", 1979),
    ("Born in 1993, Elena Petrova moved to Sofia to study law.", "Elena Petrova", "Sofia", 1993),
    ("The gardener Sam Okoro, who was born in 1960, lives in Lagos.", "Sam Okoro", "Lagos", 1960),
    ("Anna Lindqvist repairs bicycles in Malmö. Year of birth: 1969.",
     "Anna Lindqvist", "Malmö", 1969),
    ("We met Hugo Blanc at his home in Lyon. He was born in 1947.", "Hugo Blanc", "Lyon", 1947),
    ("Since 2010 Nora Quinn, born in 1982, has lived in Dublin.", "Nora Quinn", "Dublin", 1982),
    ("Ravi Menon, a doctor in Chennai, was born in 1958.", "Ravi Menon", "Chennai", 1958),
    ("The baker of Krakow is called Jan Nowak; he was born in 1977.", "Jan Nowak", "Krakow", 1977),
    ("Lucy Chen was born in 1999 and drives a tram in Melbourne.", "Lucy Chen", "Melbourne", 1999),
    ("In 1964 Marta Diaz was born; today she lives in Quito.", "Marta Diaz", "Quito", 1964),
]  # fmt: skip


# Classification


class Route(dspy.Signature):
    """Choose the department that should answer the customer's message."""

    message: str = dspy.InputField()
    department: Literal["billing", "shipping", "technical", "careers"] = dspy.OutputField()


ROUTES = [
    ("I was charged twice for the same order.", "billing"),
    ("My parcel was due on Monday and it is not here yet.", "shipping"),
    ("The app closes itself when I open the camera.", "technical"),
    ("Do you have open positions for electricians?", "careers"),
    ("Please send me the invoice for March.", "billing"),
    ("The courier left the package with the wrong neighbour.", "shipping"),
    ("I cannot log in, the page shows error 500.", "technical"),
    ("I would like to apply for the job in your warehouse.", "careers"),
    ("Why is there an extra fee of five euros on my bill?", "billing"),
    ("When will my delivery arrive?", "shipping"),
    ("After the update the printer no longer connects to wifi.", "technical"),
    ("Where can I send my CV?", "careers"),
    ("My refund has not reached my bank account.", "billing"),
    ("Can you deliver the table to another address?", "shipping"),
    ("The screen stays black when I start the device.", "technical"),
    ("Is the internship in your team paid?", "careers"),
    ("Can I pay by credit card instead of bank transfer?", "billing"),
    ("The tracking number you gave me does not work.", "shipping"),
    ("How do I install the driver on my laptop?", "technical"),
    ("I had an interview with you last week, is there any news?", "careers"),
    ("The price on the receipt is wrong.", "billing"),
]


class Mood(dspy.Signature):
    """Say whether the review is positive or negative."""

    review: str = dspy.InputField()
    is_positive: bool = dspy.OutputField()


MOODS = [
    ("The best soup I ever had.", True),
    ("The room was dirty and cold.", False),
    ("Boring from the first page to the last.", False),
    ("Kind staff, good food, we will come again.", True),
    ("It broke after two days.", False),
    ("I love this lamp, it looks wonderful.", True),
    ("A waste of money.", False),
    ("Great film, I laughed all the way through.", True),
    ("The worst concert I have been to.", False),
    ("Excellent quality and fast service.", True),
    ("Terrible taste, I threw it away.", False),
    ("My children adore this game.", True),
    ("The waiter was rude and the fish was cold.", False),
    ("Comfortable shoes, I wear them every day.", True),
    ("Do not buy this, it does not work.", False),
    ("A beautiful hotel with a friendly owner.", True),
    ("I was disappointed by the ending.", False),
]


# Short answers from a text


class Reading(dspy.Signature):
    """Answer the question with a few words from the text."""

    text: str = dspy.InputField()
    question: str = dspy.InputField()
    answer: str = dspy.OutputField()


READINGS = [
    ("The bridge at Alder was built in 1911 by Ruth Kane.", "Who built the bridge?", "Ruth Kane"),
    ("The museum opens at nine and closes at five.", "When does the museum close?", "five"),
    ("Otters eat fish, crabs and frogs.", "What do otters eat?", "fish, crabs and frogs"),
    ("The village has two mills, both made of stone.", "How many mills are there?", "two"),
    ("The red ferry sails to Holm, the blue one to Vik.", "Where does the blue ferry sail?", "Vik"),
    ("The lighthouse of Brent is 42 metres high and was painted white in 1950.",
     "How high is the lighthouse?", "42 metres"),
    ("Dr. Hale found the comet in 1987 with a telescope that she had made herself.",
     "In what year was the comet found?", "1987"),
    ("The farm grows barley in spring and cabbage in autumn.", "What grows in autumn?", "cabbage"),
    ("The train from Perth to Oban takes three hours and stops in Crieff.",
     "Where does the train stop?", "Crieff"),
    ("The oldest tree in the park is an oak. It stands near the pond.",
     "What kind of tree is the oldest?", "oak"),
    ("King Orman had three daughters: Ada, Bess and Cora. Bess became queen.",
     "Who became queen?", "Bess"),
    ("The library lends books for three weeks and films for two days.",
     "For how long are films lent?", "two days"),
    ("The river Tarn rises in the Blue Hills and flows into Lake Moor.",
     "Where does the river rise?", "Blue Hills"),
    ("The chef puts ginger, not garlic, in the soup.", "What is in the soup?", "ginger"),
    ("The factory in Selby makes glass bottles. It has 300 workers.",
     "What does the factory make?", "glass bottles"),
    ("Maya's dog is called Biscuit and her cat is called Ink.",
     "What is the cat called?", "Ink"),
    ("The match was played on Sunday in the rain and ended 3 to 1.",
     "On which day was the match played?", "Sunday"),
]  # fmt: skip


# Chain of thought

Question = dspy.Signature("question -> answer", "Answer the question with one word or number.")

QUESTIONS = [
    ("How many legs do two dogs have?", "A dog has 4 legs, and 2 times 4 is 8.", "8"),
    (
        "What is the opposite of hot?",
        "Hot means high in temperature. The opposite is cold.",
        "cold",
    ),
    ("What is 9 minus 4?", "Taking 4 from 9 leaves 5.", "5"),
    ("What is the capital of Spain?", "Spain's seat of government is in Madrid.", "Madrid"),
    ("Which is larger, a mouse or a horse?", "A mouse is tiny; a horse is large.", "horse"),
    ("What is the capital of France?", "", "Paris"),
    ("What is 3 plus 4?", "", "7"),
    ("What colour is the sky on a clear day?", "", "blue"),
    ("How many days are in a week?", "", "7"),
    ("What is the opposite of up?", "", "down"),
    ("What is 10 minus 3?", "", "7"),
    ("What is the capital of Japan?", "", "Tokyo"),
    ("Which animal barks, a dog or a cat?", "", "dog"),
    ("What is 5 times 2?", "", "10"),
    ("What do bees make?", "", "honey"),
    ("Which is heavier, a feather or a car?", "", "car"),
    ("In which season does it snow most?", "", "winter"),
]


# Lists of objects


class Item(pydantic.BaseModel):
    product: str
    quantity: int


class Order(dspy.Signature):
    """List the products that are ordered, each with its quantity."""

    order: str = dspy.InputField()
    items: list[Item] = dspy.OutputField()


ORDERS = [
    ("Two lamps and one chair, please.", {"lamps": 2, "chair": 1}),
    ("I need 12 plates.", {"plates": 12}),
    ("Please send 3 hammers, 4 saws and 1 ladder.", {"hammers": 3, "saws": 4, "ladder": 1}),
    ("One kettle and 6 cups.", {"kettle": 1, "cups": 6}),
    ("We want five tables.", {"tables": 5}),
    ("Please send 2 pens and 5 notebooks.", {"pens": 2, "notebooks": 5}),
    ("I want to order 10 bricks.", {"bricks": 10}),
    ("4 apples, 3 pears and 2 lemons.", {"apples": 4, "pears": 3, "lemons": 2}),
    ("Could I have 1 tent and 2 backpacks?", {"tent": 1, "backpacks": 2}),
    ("7 candles, please.", {"candles": 7}),
    ("We need 20 chairs and 5 desks for the school.", {"chairs": 20, "desks": 5}),
    ("3 brushes and 1 bucket.", {"brushes": 3, "bucket": 1}),
    ("Send 8 bulbs, 2 cables and 1 switch.", {"bulbs": 8, "cables": 2, "switch": 1}),
    ("I would like two shirts.", {"shirts": 2}),
    ("6 forks, 6 knives and 6 spoons.", {"forks": 6, "knives": 6, "spoons": 6}),
    ("Please add 9 batteries to my order.", {"batteries": 9}),
    ("1 pillow and 4 towels.", {"pillow": 1, "towels": 4}),
]


# Tools


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"It is sunny in {city}."


TOOLS = [dspy.Tool(add), dspy.Tool(weather)]


class Call(dspy.Signature):
    """Choose the tool to call, and its arguments."""

    question: str = dspy.InputField()
    tools: list[dspy.Tool] = dspy.InputField()
    calls: dspy.ToolCalls = dspy.OutputField()


CALLS = [
    ("What is 2 plus 2?", "add", {"a": 2, "b": 2}),
    ("How is the weather in Rome?", "weather", {"city": "Rome"}),
    ("Add 15 and 30.", "add", {"a": 15, "b": 30}),
    ("Is it raining in Cairo?", "weather", {"city": "Cairo"}),
    ("What is the sum of 7 and 9?", "add", {"a": 7, "b": 9}),
    ("What is 12 plus 5?", "add", {"a": 12, "b": 5}),
    ("What is the weather in Paris?", "weather", {"city": "Paris"}),
    ("Add 100 and 23.", "add", {"a": 100, "b": 23}),
    ("Is it sunny in Oslo?", "weather", {"city": "Oslo"}),
    ("What is the sum of 8 and 41?", "add", {"a": 8, "b": 41}),
    ("Tell me the weather in Madrid.", "weather", {"city": "Madrid"}),
    ("How much is 6 plus 17?", "add", {"a": 6, "b": 17}),
    ("Do I need an umbrella in London?", "weather", {"city": "London"}),
    ("Sum 31 and 11.", "add", {"a": 31, "b": 11}),
    ("How warm is it in Athens?", "weather", {"city": "Athens"}),
    ("What do you get when you add 9 and 9?", "add", {"a": 9, "b": 9}),
    ("What is it like outside in Tokyo?", "weather", {"city": "Tokyo"}),
]


def _react(signature: Any) -> dspy.Module:
    return dspy.ReAct(signature, tools=[add, weather], max_iters=3)


def rows_of(names: str, tuples: list[Any]) -> Rows:
    return [dict(zip(names.split(), one, strict=True)) for one in tuples]


def _call_rows() -> Rows:
    return [
        {
            "question": question,
            "tools": TOOLS,
            "calls": dspy.ToolCalls.from_dict_list([{"name": name, "args": arguments}]),
        }
        for question, name, arguments in CALLS
    ]


def _agent_rows() -> Rows:
    return [
        {
            "question": question,
            "answer": "sunny" if name == "weather" else str(sum(arguments.values())),
        }
        for question, name, arguments in CALLS
    ]


def _order_rows() -> Rows:
    return [
        {"order": text, "items": [Item(product=name, quantity=n) for name, n in items.items()]}
        for text, items in ORDERS
    ]


def made_here() -> list[Task]:
    """The tasks on texts of this file."""
    return [
        Task("extraction", Person, rows_of("text name city year", PERSONS)),
        Task("routing", Route, rows_of("message department", ROUTES)),
        Task("mood", Mood, rows_of("review is_positive", MOODS)),
        Task("reading", Reading, rows_of("text question answer", READINGS)),
        Task("thought", Question, rows_of("question reasoning answer", QUESTIONS),
             dspy.ChainOfThought),
        Task("list", Order, _order_rows()),
        Task("tool call", Call, _call_rows()),
        Task("react", dspy.Signature("question -> answer"), _agent_rows(), _react,
             takes_demos=False),
    ]  # fmt: skip
