"""Random output types for signatures: nested, recursive, constrained, with keys of any script."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import ipaddress
import itertools
import uuid
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, Optional, Union

import dspy
import pydantic
from hypothesis import strategies as st
from typing_extensions import NotRequired, TypedDict

_count = itertools.count()

WORDS = [
    "low",
    "High",
    "b c",
    "straße",
    "価格",
    "ключ",
    "a-b",
    "x_y",
    "it's",
    'say "hi"',
    "[1]",
    "None",
]
KEYS = [
    "name",
    "value",
    "größe",
    "価格",
    "ключ",
    "ümlaut key",
    'quo"te',
    "back\\slash",
    "emoji 🦙",
    "a.b",
]


class Color(enum.Enum):
    RED = "red"
    BLUE = "blau"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


BIG = enum.Enum("BIG", {f"M{n}": f"member {n}" for n in range(300)})


class Tree(pydantic.BaseModel):
    label: Annotated[str, pydantic.Field(max_length=12)]
    children: Annotated[list[Tree], pydantic.Field(max_length=2)] = []


class Chain(pydantic.BaseModel):
    value: Annotated[int, pydantic.Field(ge=-5, le=1200)]
    next: Chain | None = None


class Cat(pydantic.BaseModel):
    kind: Literal["cat"]
    lives: Annotated[int, pydantic.Field(ge=0, le=9)]


class Dog(pydantic.BaseModel):
    kind: Literal["dog"]
    tricks: Annotated[
        list[Annotated[str, pydantic.Field(max_length=8)]], pydantic.Field(max_length=3)
    ]


Pet = Annotated[Cat | Dog, pydantic.Field(discriminator="kind")]


class Shade(str, enum.Enum):
    DARK = "dark blue"
    TRUE = "true"


class Reading(TypedDict):
    at: pydantic.PastDate
    words: NotRequired[Annotated[list[Color], pydantic.Field(max_length=2)]]


@dataclasses.dataclass
class Point:
    x: Annotated[int, pydantic.Field(ge=-3, le=3)]
    y: float | None = None


class HoldsJson(pydantic.BaseModel):
    anything: pydantic.Json
    points: pydantic.Json[Annotated[list[Point], pydantic.Field(max_length=2)]]
    flags: Annotated[dict[str, pydantic.Json[bool]], pydantic.Field(max_length=2)]


class Pair(NamedTuple):
    level: Level
    word: Annotated[str, pydantic.Field(max_length=4)]


class Grid(pydantic.BaseModel):
    rows: Annotated[
        list[
            Annotated[
                list[Annotated[int, pydantic.Field(ge=0, le=5)]],
                pydantic.Field(min_length=1, max_length=2),
            ]
        ],
        pydantic.Field(min_length=2, max_length=3),
    ]


class Signs(enum.Enum):
    TAG = "<b>"
    AND = "&amp; "
    CLOSING = "</value>"


class SignedKeys(pydantic.BaseModel):
    tag: bool = pydantic.Field(alias="<b>&")


class Bytes(enum.Enum):
    TEXT = b"a"
    OTHER = b"\xff"


class Lists(enum.Enum):
    ONE = [1]  # noqa: RUF012
    TWO = [2]  # noqa: RUF012


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)
    day: datetime.date
    price: Decimal
    ident: uuid.UUID
    pair: tuple[int, Color]


class AtPaths(pydantic.BaseModel):
    first: int = pydantic.Field(validation_alias=pydantic.AliasPath("names", 0))
    last: bool = pydantic.Field(True, validation_alias=pydantic.AliasPath("names", -1))
    deep: Color = pydantic.Field(validation_alias=pydantic.AliasPath("a", "b", "c"))
    either: bool = pydantic.Field(
        validation_alias=pydantic.AliasChoices(pydantic.AliasPath("a", "d"), "either one")
    )


class PerhapsAtPath(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    value: Optional[bool] = pydantic.Field(None, validation_alias=pydantic.AliasPath("a", "b"))
    other: Optional[bool] = pydantic.Field(None, validation_alias=pydantic.AliasPath("a", "c"))


few = pydantic.Field(max_length=3)
two = pydantic.Field(min_length=2, max_length=2)


class Mixed(enum.Enum):
    ONE = 1
    TEXT = "eins"
    FALSE = False


BOUND_KINDS: list[Any] = [
    pydantic.PastDate,
    pydantic.FutureDate,
    Annotated[list[pydantic.FutureDate], few],
    Annotated[Level, pydantic.Field(ge=2)],
    Optional[Level],
    Optional[Shade],
    Optional[Annotated[str, pydantic.Field(pattern="^[0-9]{2}$")]],
    Annotated[bytes, pydantic.Field(max_length=3)],
    Optional[Decimal],
    Union[Level, Color, None],
    Union[float, Literal["n/a"]],
    Shade,
    Annotated[tuple[int, ...], two],
    tuple[int, Color, bool],
    Grid,
    Reading,
    Point,
    Pair,
    Pet,
    Annotated[list[Pet], few],
    Annotated[set[Literal["a", "b", "c"]], two],
    Annotated[frozenset[Color], two],
    Annotated[set[Level], two],
    Annotated[set[bool], two],
    Annotated[set[Annotated[int, pydantic.Field(ge=1, le=3)]], two],
    set[Color],
    Annotated[dict[Literal["a", "b"], int], two],
    Annotated[dict[Color, bool], two],
    Annotated[dict[Level, int], few],
    Annotated[dict[Annotated[str, pydantic.Field(pattern="^[a-z]{2}$")], int], few],
    Annotated[
        dict[Annotated[str, pydantic.Field(pattern="^[a-z]+$", min_length=2, max_length=4)], int],
        pydantic.Field(min_length=1, max_length=2),
    ],
    Annotated[dict[datetime.date, int], few],
    pydantic.HttpUrl,
    pydantic.AnyUrl,
    pydantic.PostgresDsn,
    Optional[pydantic.HttpUrl],
    ipaddress.IPv4Address,
    ipaddress.IPv6Address,
    ipaddress.IPv4Network,
    ipaddress.IPv6Network,
    pydantic.IPvAnyNetwork,
    ipaddress.IPv6Interface,
    Union[ipaddress.IPv4Address, ipaddress.IPv6Address],
    pydantic.UUID4,
    complex,
    pydantic.Json,
    Optional[pydantic.Json],
    Annotated[list[pydantic.Json], few],
    HoldsJson,
    pydantic.AwareDatetime,
    pydantic.NaiveDatetime,
    pydantic.NegativeFloat,
    pydantic.PositiveInt,
    pydantic.NonNegativeFloat,
    Annotated[list[Annotated[bytes, pydantic.Field(min_length=2, max_length=4)]], few],
    Annotated[Decimal, pydantic.Field(max_digits=4, decimal_places=2, ge=Decimal("0.5"), lt=7)],
    Annotated[Decimal, pydantic.Field(gt=Decimal(10) ** 16)],
    Annotated[float, pydantic.Field(gt=1e15, lt=1e15 + 1)],
    Annotated[dict[Annotated[float, pydantic.Field(gt=1e15)], bool], few],
    Annotated[
        datetime.timedelta,
        pydantic.Field(ge=datetime.timedelta(hours=1), lt=datetime.timedelta(days=2)),
    ],
    dict[Mixed, int],
    set,
    Annotated[Optional[str], pydantic.Field(min_length=2, max_length=3)],
    Annotated[str, pydantic.Field(max_length=0)],
    Annotated[str, pydantic.Field(pattern="^<[a-z]>&$")],
    Signs,
    Annotated[list[Signs], few],
    Annotated[dict[Signs, int], few],
    SignedKeys,
    Literal["<a>", "[[ ## word ## ]]", "x"],
    Literal["two\nlines"],
    Bytes,
    Lists,
    Strict,
    Annotated[datetime.date, pydantic.Field(strict=True)],
    Annotated[Optional[frozenset[int]], pydantic.Field(strict=True)],
    Annotated[Union[int, float], pydantic.Field(ge=3, lt=5)],
    Annotated[list[Annotated[Union[int, float, None], pydantic.Field(ge=3, lt=5)]], two],
    Annotated[list[Annotated[Union[bool, int], pydantic.Field(gt=0, multiple_of=3)]], two],
    Annotated[list[Annotated[Literal[1, 2, 3], pydantic.Field(ge=2)]], two],
    Annotated[list[Annotated[Union[str, Level], pydantic.Field(ge=2)]], two],
    Annotated[
        list[
            Annotated[
                Union[datetime.date, datetime.timedelta],
                pydantic.Field(gt=datetime.date(2020, 1, 1)),
            ]
        ],
        two,
    ],
    Annotated[Union[str, list[int]], two],
    Annotated[Union[str, int], pydantic.Field(pattern="^[a-c]{2}$")],
    Annotated[Union[str, int], pydantic.Field(ge=3)],
    Annotated[dict[str, Annotated[Union[Decimal, bool], pydantic.Field(max_digits=2)]], few],
    Annotated[Union[float, int], pydantic.Field(union_mode="left_to_right")],
    Annotated[Union[Decimal, str], pydantic.Field(union_mode="left_to_right", max_digits=2)],
    Annotated[
        datetime.timedelta,
        pydantic.Field(gt=datetime.timedelta(days=-3), le=datetime.timedelta(days=-2)),
    ],
    Annotated[datetime.timedelta, pydantic.Field(lt=datetime.timedelta(hours=-2))],
    Annotated[
        datetime.timedelta,
        pydantic.Field(ge=datetime.timedelta(hours=-2), le=datetime.timedelta(hours=3)),
    ],
    AtPaths,
    PerhapsAtPath,
    Literal[Color.RED, "x", 3],
    Optional[Literal[Color.RED, Level.LOW]],
]
"""Types all of which a grammar says, whatever the form of the answer."""


def _no_vowel(word: str) -> str:
    if set(word) & set("aeiou"):
        raise ValueError("a vowel")
    return word


class Even(pydantic.BaseModel):
    number: int

    @pydantic.field_validator("number")
    @classmethod
    def is_even(cls, number: int) -> int:
        if number % 2:
            raise ValueError("odd")
        return number


class Corner(enum.Enum):
    LEFT = (0, 0)
    RIGHT = (1, 0)


CHECKED_KINDS: list[Any] = [
    pydantic.PastDatetime,
    pydantic.FutureDatetime,
    Even,
    Annotated[list[Corner], pydantic.Field(max_length=2)],
    Annotated[set[int], pydantic.Field(min_length=2, max_length=2)],
    Annotated[str, pydantic.Field(pattern="^[a-z]{4}$"), pydantic.AfterValidator(_no_vowel)],
]
"""Types of which a grammar leaves something to be checked after."""


def is_checked_after(field: Any) -> bool:
    """Whether a field's type is one of those that a grammar does not say whole."""
    kinds = [pydantic.fields.FieldInfo.from_annotation(kind) for kind in CHECKED_KINDS]
    asked = (field.annotation, field.metadata)
    return any((kind.annotation, kind.metadata) == asked for kind in kinds)


short_text = st.sampled_from([
    Annotated[str, pydantic.Field(max_length=10)],
    Annotated[str, pydantic.Field(min_length=2, max_length=6)],
    Annotated[str, pydantic.Field(pattern=r"^[A-Z]{2}-\d{3}$")],
    Annotated[str, pydantic.Field(pattern=r"^[^@ ]{1,5}@[^@ ]{1,5}\.(com|org)$")],
    Annotated[str, pydantic.Field(pattern="^[a-z]+(-[a-z]+)*$", min_length=3, max_length=9)],
    Annotated[str, pydantic.Field(pattern="[0-9]", max_length=7)],
])  # fmt: skip
numbers = st.one_of(
    st.sampled_from([int, float, Decimal]),
    st.tuples(st.integers(-2000, 2000), st.integers(0, 3000)).map(
        lambda ends: Annotated[int, pydantic.Field(ge=ends[0], le=ends[0] + ends[1])]
    ),
    st.tuples(st.floats(-50, 50), st.floats(0.01, 50)).map(
        lambda ends: Annotated[float, pydantic.Field(gt=ends[0], lt=ends[0] + ends[1])]
    ),
    st.integers(-9, 9).map(lambda low: Annotated[float, pydantic.Field(ge=low / 3)]),
)
multiples = st.one_of(
    st.tuples(st.integers(1, 40), st.none() | st.integers(-500, 500)).map(
        lambda n: Annotated[int, pydantic.Field(multiple_of=n[0], ge=n[1])]
    ),
    st.sampled_from(["0.05", "0.25", "0.5", "3", "1.2"]).map(
        lambda step: Annotated[Decimal, pydantic.Field(multiple_of=Decimal(step))]
    ),
    st.sampled_from([0.25, 0.1, 2.5]).map(
        lambda step: Annotated[float, pydantic.Field(multiple_of=step, gt=-9, lt=12)]
    ),
    st.tuples(st.integers(1, 6), st.integers(0, 3)).map(
        lambda n: Annotated[Decimal, pydantic.Field(max_digits=n[0], decimal_places=min(n))]
    ),
)
_moments = st.datetimes(datetime.datetime(1000, 1, 2), datetime.datetime(9000, 1, 1))  # noqa: DTZ001
moments = st.one_of(
    _moments.map(lambda one: Annotated[datetime.date, pydantic.Field(gt=one.date())]),
    st.tuples(_moments, st.integers(0, 10**7)).map(
        lambda ends: Annotated[
            datetime.datetime,
            pydantic.Field(ge=ends[0], lt=ends[0] + datetime.timedelta(seconds=ends[1] + 2)),
        ]
    ),
    _moments.map(
        lambda one: Annotated[
            datetime.datetime, pydantic.Field(le=one.replace(tzinfo=datetime.timezone.utc))
        ]
    ),
    st.integers(0, 22).map(
        lambda hour: Annotated[datetime.time, pydantic.Field(ge=datetime.time(hour))]
    ),
    st.integers(1, 10**6).map(
        lambda most: Annotated[
            datetime.timedelta, pydantic.Field(le=datetime.timedelta(seconds=most))
        ]
    ),
)
scalars = st.one_of(
    short_text,
    numbers,
    multiples,
    moments,
    st.sampled_from([bool, datetime.date, datetime.datetime, datetime.time, datetime.timedelta]),
    st.sampled_from([uuid.UUID, Color, Level, BIG, type(None)]),
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=5, unique=True).map(
        lambda words: Literal[tuple(words)]
    ),
    st.sampled_from([Literal[1, "1", True, None], Literal[0, False], Literal["yes"]]),
)
constrained = st.one_of(short_text, numbers, multiples, moments)
recursive = st.sampled_from([Tree, Chain, Pet])


@st.composite
def models(draw, inner):
    keys = draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=3, unique=True))
    fields: dict[str, Any] = {}
    for number, key in enumerate(keys):
        annotation = draw(inner)
        default = ... if draw(st.booleans()) else None
        if default is None:
            annotation = Optional[annotation]
        fields[f"f{number}"] = (annotation, pydantic.Field(default, alias=key))
    extra = draw(st.sampled_from(["ignore", "forbid"]))
    return pydantic.create_model(
        f"Model{next(_count)}", __config__=pydantic.ConfigDict(extra=extra), **fields
    )


def nested(inner):
    """One level more."""
    return st.one_of(
        inner.map(lambda kind: Annotated[list[kind], few]),
        inner.map(
            lambda kind: Annotated[dict[Annotated[str, pydantic.Field(max_length=5)], kind], few]
        ),
        inner.map(lambda kind: Annotated[dict[int, kind], few]),
        inner.map(lambda kind: Optional[kind]),
        st.tuples(inner, inner).map(lambda kinds: Union[kinds]),
        st.tuples(inner, inner).map(lambda kinds: tuple[kinds]),
        models(inner),
    )


def types(depth: int):
    """Types nested up to a depth."""
    kinds = scalars | recursive
    for _ in range(depth):
        kinds = st.one_of(scalars, recursive, nested(kinds))
    return kinds


told_or_not = st.sampled_from([*BOUND_KINDS, *CHECKED_KINDS])


@st.composite
def signatures(draw, depth=4):
    """Signatures of one to three output fields; a third of them free text."""
    names = draw(st.permutations(["answer", "answer_kind", "score", "größe"]))
    fields: dict[str, Any] = {"question": (str, dspy.InputField())}
    for name in names[: draw(st.integers(1, 3))]:
        # Drawn first: among all strategies of a one_of, free text would come seldom.
        is_text = draw(st.integers(0, 2)) == 0
        annotation = str if is_text else draw(st.one_of(types(depth), constrained, told_or_not))
        fields[name] = (annotation, dspy.OutputField())
    return dspy.Signature(fields, "Answer.")
