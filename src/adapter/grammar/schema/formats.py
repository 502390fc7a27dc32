"""Dates, times and identifiers as expressions that allow only those that exist."""

from __future__ import annotations

from adapter.grammar.gbnf.characters import DIGITS, HEX_DIGITS, Characters
from adapter.grammar.gbnf.rules import Expression, choice, one_of, optional, repeat, sequence
from adapter.grammar.schema.web_formats import web_format

_DIGIT = one_of(DIGITS)


def _digit(first: int, last: int) -> Expression:
    return one_of(Characters.of((0x30 + first, 0x30 + last)))


def _up_to(tens: int, ones: int) -> Expression:
    """Two digits from 00 to a number."""
    return choice([sequence(_digit(0, tens - 1), _DIGIT), sequence(str(tens), _digit(0, ones))])


def _date() -> Expression:
    to_28 = [sequence("0", _digit(1, 9)), sequence("1", _DIGIT), sequence("2", _digit(0, 8))]
    to_30 = [*to_28, "29", "30"]
    months_31 = choice(["01", "03", "05", "07", "08", "10", "12"])
    months_30 = choice(["04", "06", "09", "11"])
    any_year = sequence(_digit(1, 9), repeat(_DIGIT, 3, 3))
    fours = ["0" + d for d in "48"] + [a + b for a in "2468" for b in "048"]
    fours += [a + b for a in "13579" for b in "26"]
    leap_year = choice(
        [
            sequence(_digit(1, 9), _DIGIT, choice(fours)),
            sequence(choice(year for year in [*fours, "00"] if year[0] != "0"), "00"),
        ]
    )
    in_any_year = choice(
        [
            sequence(months_31, "-", choice([*to_30, "31"])),
            sequence(months_30, "-", choice(to_30)),
            sequence("02-", choice(to_28)),
        ]
    )
    return choice([sequence(any_year, "-", in_any_year), sequence(leap_year, "-02-29")])


DATE = _date()
_CLOCK = sequence(
    _up_to(2, 3),
    ":",
    _up_to(5, 9),
    ":",
    _up_to(5, 9),
    optional(sequence(".", repeat(_DIGIT, 1, 6))),
)
_ZONE = choice(["Z", sequence(one_of(Characters.of("+-")), _up_to(2, 3), ":", _up_to(5, 9))])
_HEX = one_of(HEX_DIGITS)
_COUNT = sequence(_digit(1, 9), repeat(_DIGIT, 0, 3))
_SECONDS = sequence(_COUNT, "S")
_MINUTES = sequence(_COUNT, "M", optional(_SECONDS))
_HOURS = choice([sequence(_COUNT, "H", optional(_MINUTES)), _MINUTES, _SECONDS])


def _uuid(version: Expression = _HEX, variant: Expression = _HEX) -> Expression:
    def digits(count: int) -> Expression:
        return repeat(_HEX, count, count)

    return sequence(
        digits(8), "-", digits(4), "-", version, digits(3), "-", variant, digits(3), "-", digits(12)
    )


_VARIANT = one_of(Characters.of("89abAB"))  # the one whose versions have a number


_OCTET = choice(
    [
        sequence("25", _digit(0, 5)),
        sequence("2", _digit(0, 4), _DIGIT),
        sequence("1", _DIGIT, _DIGIT),
        sequence(_digit(1, 9), _DIGIT),
        _DIGIT,
    ]
)
_IPV4 = sequence(_OCTET, ".", _OCTET, ".", _OCTET, ".", _OCTET)
_GROUP = repeat(_HEX, 1, 4)
_IPV6 = sequence(_GROUP, repeat(sequence(":", _GROUP), 7, 7))  # without "::"
_BASE64 = one_of(DIGITS | Characters.of((0x41, 0x5A), (0x61, 0x7A), "+/"))
_BASE64_URL = one_of(DIGITS | Characters.of((0x41, 0x5A), (0x61, 0x7A), "-_"))
_UP_TO_32 = choice([sequence("3", _digit(0, 2)), sequence(_digit(1, 2), _DIGIT), _DIGIT])
_UP_TO_128 = choice(
    [
        sequence("12", _digit(0, 8)),
        sequence("1", _digit(0, 1), _DIGIT),
        sequence(_digit(1, 9), _DIGIT),
        _DIGIT,
    ]
)
_IPV4_NETWORK = choice(
    [
        sequence(_IPV4, "/32"),
        sequence(_OCTET, ".", _OCTET, ".", _OCTET, ".0/24"),
        sequence(_OCTET, ".", _OCTET, ".0.0/16"),
        sequence(_OCTET, ".0.0.0/8"),
    ]
)
_GROUPS = sequence(_GROUP, repeat(sequence(":", _GROUP), 2, 2))
_IPV6_NETWORK = choice(
    [
        sequence(_IPV6, "/128"),
        sequence(_GROUPS, ":", _GROUP, "::/64"),
        sequence(_GROUPS, "::/48"),
    ]
)


def _in_base64(sign: Expression) -> Expression:
    """Whole groups of four. Before the padding, unused bits are zero."""
    last = one_of(Characters.of("AQgw")), one_of(Characters.of("AEIMQUYcgkosw048"))
    padded = choice([sequence(sign, last[0], "=="), sequence(sign, sign, last[1], "=")])
    return sequence(repeat(repeat(sign, 4, 4)), optional(padded))


FORMATS: dict[str, Expression] = {
    "date": DATE,
    "time": sequence(_CLOCK, _ZONE),
    "date-time": sequence(DATE, "T", _CLOCK, _ZONE),
    "duration": choice(
        [
            sequence("P", _COUNT, "D", optional(sequence("T", _HOURS))),
            sequence("PT", _HOURS),
        ]
    ),
    "uuid": _uuid(),
    **{f"uuid{version}": _uuid(sequence(str(version)), _VARIANT) for version in range(1, 9)},
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    # pydantic's own kinds. The bits behind a network's mask are zero.
    "ipvanyaddress": choice([_IPV4, _IPV6]),
    "ipv4interface": sequence(_IPV4, "/", _UP_TO_32),
    "ipv6interface": sequence(_IPV6, "/", _UP_TO_128),
    "ipvanyinterface": choice([sequence(_IPV4, "/", _UP_TO_32), sequence(_IPV6, "/", _UP_TO_128)]),
    "ipv4network": _IPV4_NETWORK,
    "ipv6network": _IPV6_NETWORK,
    "ipvanynetwork": choice([_IPV4_NETWORK, _IPV6_NETWORK]),
    "base64": _in_base64(_BASE64),
    "base64url": _in_base64(_BASE64_URL),
    # Python's own kinds, which RFC 3339 lacks.
    "naive-time": _CLOCK,
    "any-time": sequence(_CLOCK, optional(_ZONE)),
    "naive-date-time": sequence(DATE, "T", _CLOCK),
    "any-date-time": sequence(DATE, "T", _CLOCK, optional(_ZONE)),
}
"""The form of a string of each format."""


def format_expression(name: str) -> Expression | None:
    """The form of a string of a format; None if the format is unknown."""
    return FORMATS.get(name) or web_format(name)
