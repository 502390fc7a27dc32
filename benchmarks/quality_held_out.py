"""Tasks of quality.py that no prompt and no grammar was chosen by.

They are like those of quality_tasks.py, with other signatures, types and texts.
"""

from __future__ import annotations

import datetime
from typing import Literal

import dspy
import pydantic
from quality_tasks import Rows, Task, rows_of

# Classification, with three labels


class Topic(dspy.Signature):
    """Say what the sentence is about."""

    sentence: str = dspy.InputField()
    topic: Literal["sport", "food", "travel"] = dspy.OutputField()


TOPICS = [
    ("The striker scored twice before half-time.", "sport"),
    ("Stir the rice until the broth is gone.", "food"),
    ("Our flight to Lisbon was two hours late.", "travel"),
    ("She won the marathon in the rain.", "sport"),
    ("The hotel near the station was full.", "travel"),
    ("The goalkeeper caught every ball.", "sport"),
    ("Add a pinch of salt to the dough.", "food"),
    ("We took the night train to Prague.", "travel"),
    ("The tennis final lasted five sets.", "sport"),
    ("This bakery makes the best bread in town.", "food"),
    ("Do not forget your passport at the border.", "travel"),
    ("The team trains three times a week.", "sport"),
    ("Fry the onions in butter for five minutes.", "food"),
    ("We booked a cabin on the ferry to Crete.", "travel"),
    ("He broke the world record in swimming.", "sport"),
    ("The soup needs more garlic.", "food"),
    ("The tour bus stops at the old castle.", "travel"),
]

# A day and an amount


class Payment(dspy.Signature):
    """Extract the day of the payment and the amount that was paid."""

    note: str = dspy.InputField()
    date: datetime.date = dspy.OutputField()
    amount: float = dspy.OutputField(desc="amount paid")


PAYMENTS = [
    ("Paid 45.50 euros to the plumber on 2024-03-05.", "2024-03-05", 45.5),
    ("On 2023-11-20 we paid 120 dollars for the tickets.", "2023-11-20", 120.0),
    ("2022-07-01: rent, 800 euros.", "2022-07-01", 800.0),
    ("The dentist got 65.25 on 2024-01-17.", "2024-01-17", 65.25),
    ("9.99 for the magazine, paid on 2021-12-24.", "2021-12-24", 9.99),
    ("On 2024-05-12 I paid 30 euros for the books.", "2024-05-12", 30.0),
    ("Electricity bill of 74.80, paid on 2023-02-28.", "2023-02-28", 74.8),
    ("2020-10-03: 15 dollars for lunch.", "2020-10-03", 15.0),
    ("The gardener received 210 euros on 2022-04-19.", "2022-04-19", 210.0),
    ("We transferred 55.40 to the school on 2024-09-02.", "2024-09-02", 55.4),
    ("On 2021-06-30 the repair was paid, 330 euros.", "2021-06-30", 330.0),
    ("Train ticket, 18.70, 2023-08-08.", "2023-08-08", 18.7),
    ("Paid on 2022-01-11: 500 euros to the builder.", "2022-01-11", 500.0),
    ("12.30 euros were paid for stamps on 2024-02-06.", "2024-02-06", 12.3),
    ("The choir paid 90 dollars for the hall on 2023-12-15.", "2023-12-15", 90.0),
    ("On 2020-03-21 Anna paid 27.60 for flowers.", "2020-03-21", 27.6),
    ("2024-11-09, new tyres, 412 euros.", "2024-11-09", 412.0),
]

# Yes or no


class Mentions(dspy.Signature):
    """Say whether the sentence mentions an animal."""

    sentence: str = dspy.InputField()
    mentions_animal: bool = dspy.OutputField()


MENTIONS = [
    ("The cat slept on the sofa.", True),
    ("The train was late.", False),
    ("A horse stood in the field.", True),
    ("She bought a red coat.", False),
    ("The dog barked all night.", True),
    ("The lamp is broken.", False),
    ("Two rabbits ran across the road.", True),
    ("He painted the door blue.", False),
    ("My sister feeds the ducks.", True),
    ("The meeting starts at nine.", False),
    ("A bear was seen near the village.", True),
    ("The price of oil fell.", False),
    ("We watched the elephants at the zoo.", True),
    ("The window would not open.", False),
    ("The farmer milked the cows.", True),
    ("Her bicycle has a new bell.", False),
    ("An owl lives in our barn.", True),
]

# Short answers from a text


class Lookup(dspy.Signature):
    """Answer the question from the passage."""

    passage: str = dspy.InputField()
    question: str = dspy.InputField()
    answer: str = dspy.OutputField()


LOOKUPS = [
    ("Lena keeps bees and sells honey at the market.", "What does Lena sell?", "honey"),
    ("The castle was sold to Count Brae in 1820.", "Who bought the castle?", "Count Brae"),
    ("The pool is closed on Tuesdays.", "On which day is the pool closed?", "Tuesday"),
    ("The recipe needs three eggs and a cup of milk.", "How many eggs are needed?", "three"),
    (
        "The boat left from Ness and reached Tarbert at dusk.",
        "Where did the boat leave from?",
        "Ness",
    ),
    (
        "Omar plays the violin, and his brother plays the drums.",
        "What does Omar's brother play?",
        "drums",
    ),
    ("The tower has 212 steps and a bell from 1755.", "How many steps does the tower have?", "212"),
    (
        "The letter was written by Queen Isolde to her sister.",
        "Who wrote the letter?",
        "Queen Isolde",
    ),
    (
        "The shop sells shoes on the first floor and hats on the second.",
        "What is sold on the second floor?",
        "hats",
    ),
    ("The comet returns every 76 years.", "How often does the comet return?", "76 years"),
    ("Professor Lund teaches botany in Uppsala.", "What does Professor Lund teach?", "botany"),
    (
        "The market is held in the square behind the church.",
        "Where is the market held?",
        "square behind the church",
    ),
    ("The glacier lost nine metres last summer.", "How much did the glacier lose?", "nine metres"),
    ("Fatima baked the cake and Jonas brought the juice.", "Who brought the juice?", "Jonas"),
    ("The film begins at eight and lasts two hours.", "How long does the film last?", "two hours"),
    (
        "The statue is made of bronze and stands in the park.",
        "What is the statue made of?",
        "bronze",
    ),
    (
        "The first mayor of Elm was a baker named Otto Rusk.",
        "Who was the first mayor of Elm?",
        "Otto Rusk",
    ),
]

# Sums in words

Sum = dspy.Signature("question -> answer: int", "Solve the problem.")
SUMS = [
    (
        "Tom has 3 apples and buys 2 more. How many apples has he?",
        "He has 3, and 3 plus 2 is 5.",
        5,
    ),
    ("There are 9 birds and 4 fly away. How many are left?", "9 minus 4 is 5.", 5),
    ("Each box holds 6 pens. How many pens are in 2 boxes?", "2 times 6 is 12.", 12),
    ("Ann had 10 coins and spent 7. How many has she now?", "10 minus 7 is 3.", 3),
    ("A bus has 5 people; 6 get on. How many are on it?", "5 plus 6 is 11.", 11),
    ("Sara has 4 books and gets 5 more. How many books has she?", "", 9),
    ("There were 8 cakes and 3 were eaten. How many are left?", "", 5),
    ("One ticket costs 3 euros. What do 4 tickets cost?", "", 12),
    ("Ben is 7 years old. How old will he be in 5 years?", "", 12),
    ("A shelf has 10 cups; 2 fall down. How many are on the shelf?", "", 8),
    ("Mia has 6 red and 3 blue balls. How many balls has she?", "", 9),
    ("A dog eats 2 bowls a day. How many bowls does it eat in 3 days?", "", 6),
    ("There are 12 eggs and 4 break. How many are whole?", "", 8),
    ("Leo walks 5 km and then 4 km. How many km does he walk?", "", 9),
    ("Three friends have 2 hats each. How many hats have they?", "", 6),
    ("A tree had 15 pears and 5 fell down. How many are on it?", "", 10),
    ("Eva reads 20 pages on Monday and 10 on Tuesday. How many pages does she read?", "", 30),
]

# A list of objects


class Guest(pydantic.BaseModel):
    name: str
    age: int


class Guests(dspy.Signature):
    """List the people in the text, each with their age."""

    text: str = dspy.InputField()
    people: list[Guest] = dspy.OutputField()


GUESTS = [
    ("Ada is 31 and Ben is 29.", {"Ada": 31, "Ben": 29}),
    ("Carl, 54, came alone.", {"Carl": 54}),
    ("Dora (12), Emil (9) and Fay (7) are siblings.", {"Dora": 12, "Emil": 9, "Fay": 7}),
    ("At 80, Greta is older than Hans, who is 77.", {"Greta": 80, "Hans": 77}),
    ("Iris is 23.", {"Iris": 23}),
    ("Jack is 40 and Kate is 38.", {"Jack": 40, "Kate": 38}),
    ("Liam, 19, shares a flat with Mona, 21.", {"Liam": 19, "Mona": 21}),
    ("Nina is 66 years old.", {"Nina": 66}),
    ("Oscar (5) and Paula (3) like the slide.", {"Oscar": 5, "Paula": 3}),
    ("Quinn is 45, Rosa is 47 and Saul is 50.", {"Quinn": 45, "Rosa": 47, "Saul": 50}),
    ("Tara turned 30 today; Umar is 33.", {"Tara": 30, "Umar": 33}),
    ("Only Vera, 28, was at home.", {"Vera": 28}),
    ("Will is 14 and his sister Xenia is 16.", {"Will": 14, "Xenia": 16}),
    ("Yara, 35, and Zeno, 36, run the shop.", {"Yara": 35, "Zeno": 36}),
    ("Alma is 90 and still swims.", {"Alma": 90}),
    ("Bruno (41) met Celia (39) and Dario (44).", {"Bruno": 41, "Celia": 39, "Dario": 44}),
    ("Elsa is 8 and Finn is 10.", {"Elsa": 8, "Finn": 10}),
]


def people_rows() -> Rows:
    """The texts about people."""
    return [
        {"text": text, "people": [Guest(name=name, age=age) for name, age in ages.items()]}
        for text, ages in GUESTS
    ]


def held_out() -> list[Task]:
    """The tasks on texts of this file."""
    payments = [(note, datetime.date.fromisoformat(day), paid) for note, day, paid in PAYMENTS]
    return [
        Task("topic", Topic, rows_of("sentence topic", TOPICS)),
        Task("payment", Payment, rows_of("note date amount", payments)),
        Task("animals", Mentions, rows_of("sentence mentions_animal", MENTIONS)),
        Task("lookup", Lookup, rows_of("passage question answer", LOOKUPS)),
        Task("sums", Sum, rows_of("question reasoning answer", SUMS), dspy.ChainOfThought),
        Task("people", Guests, people_rows()),
    ]
