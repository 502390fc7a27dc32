"""E-mail addresses, host names and URLs as expressions."""

from __future__ import annotations

from collections.abc import Iterable

from adapter.grammar.gbnf.characters import DIGITS, HEX_DIGITS, Characters
from adapter.grammar.gbnf.rules import EMPTY, Expression, choice, one_of, optional, repeat, sequence

_LETTERS = Characters.of((0x41, 0x5A), (0x61, 0x7A))
_WORD = _LETTERS | DIGITS
_UNRESERVED = _WORD | Characters.of("-._~")
_ENCODED = sequence("%", one_of(HEX_DIGITS), one_of(HEX_DIGITS))


def _dotted(part: Expression, least: int, most: int) -> Expression:
    """A number of parts with dots between them."""
    return sequence(part, repeat(sequence(".", part), least - 1, most - 1))


# Only single hyphens: two may begin an encoded label, which must be decodable.
_MORE_OF_LABEL = sequence(
    repeat(one_of(_WORD), 0, 19), repeat(sequence("-", repeat(one_of(_WORD), 1, 12)), 0, 3)
)
_LABEL = sequence(one_of(_WORD), _MORE_OF_LABEL)
_NAMED_LABEL = sequence(one_of(_LETTERS), _MORE_OF_LABEL)
_ATOM_SIGNS = _WORD | Characters.of("!#$%&'*+/=?^_`{|}~-")
_ATOM = repeat(one_of(_ATOM_SIGNS), 1, 20)
_TOP_LABEL = repeat(one_of(_LETTERS), 2, 24)

HOST_NAME = _dotted(_LABEL, 1, 5)
EMAIL = sequence(_dotted(_ATOM, 1, 3), "@", _dotted(_LABEL, 1, 3), ".", _TOP_LABEL)


def _signs(characters: Characters, most: int) -> Expression:
    return repeat(choice([one_of(characters), _ENCODED]), 0, most)


_PATH_SIGNS = _UNRESERVED | Characters.of("!$&'()*+,;=:@")
_PATH = _signs(_PATH_SIGNS | Characters.of("/"), 200)
_QUERY = optional(sequence("?", _signs(_PATH_SIGNS | Characters.of("/?"), 200)))
_FRAGMENT = optional(sequence("#", _signs(_PATH_SIGNS | Characters.of("/?"), 64)))
_PORT = sequence(":", one_of(Characters.of((0x31, 0x39))), repeat(one_of(DIGITS), 0, 3))
_USER = sequence(
    repeat(one_of(_UNRESERVED), 1, 32),
    optional(sequence(":", repeat(one_of(_UNRESERVED), 0, 32))),
    "@",
)
_AFTER_HOST = sequence(optional(_PORT), optional(sequence("/", _PATH)), _QUERY, _FRAGMENT)

URI = sequence(
    one_of(_LETTERS),
    repeat(one_of(_WORD | Characters.of("+.-")), 0, 30),
    ":",
    choice(
        [
            sequence("//", optional(_USER), HOST_NAME, _AFTER_HOST),
            sequence("///", _PATH, _QUERY, _FRAGMENT),
            sequence(one_of(_PATH_SIGNS), _PATH, _QUERY, _FRAGMENT),
        ]
    ),
)

_OF_SEGMENT = _PATH_SIGNS - Characters.of(":")  # in the first one, a colon would end a scheme
URI_REFERENCE = choice(
    [
        URI,
        sequence("/", optional(sequence(one_of(_PATH_SIGNS), _PATH)), _QUERY, _FRAGMENT),
        sequence(
            one_of(_OF_SEGMENT),
            _signs(_OF_SEGMENT, 64),
            optional(sequence("/", _PATH)),
            _QUERY,
            _FRAGMENT,
        ),
        sequence("#", _signs(_PATH_SIGNS | Characters.of("/?"), 64)),
    ]
)

_ANY_SCHEMES = ("http", "https", "ftp", "ws", "wss")


def url(schemes: Iterable[str] | None) -> Expression:
    """URLs of some schemes, as pydantic's types read them: the last label of a host has letters."""
    options = []
    for scheme in schemes or _ANY_SCHEMES:
        if scheme == "file":
            options.append(sequence("file:///", _PATH))
            continue
        host = sequence(repeat(sequence(_NAMED_LABEL, "."), 0, 4), _NAMED_LABEL)
        user = EMPTY if scheme.startswith(("http", "ws")) else optional(_USER)
        options.append(sequence(f"{scheme}://", user, host, _AFTER_HOST))
    return choice(options)


_URL = "x-url"


def url_format(schemes: Iterable[str] | None) -> str:
    """The name of the format of URLs of some schemes; None for any."""
    return " ".join([_URL, *(schemes or ())])


def web_format(name: str) -> Expression | None:
    """The form of a string of a format; None for a format of another kind."""
    kind, *schemes = name.split(" ")
    return url(schemes) if kind == _URL else _NAMED.get(name)


_NAMED = {
    "email": EMAIL,
    "idn-email": EMAIL,
    "hostname": HOST_NAME,
    "idn-hostname": HOST_NAME,
    "uri": URI,
    "iri": URI,
    "uri-reference": URI_REFERENCE,
    "iri-reference": URI_REFERENCE,
}
"""International ones as well: what has none of their characters fits them."""


def _any_signs(characters: Characters) -> Expression:
    return repeat(choice([one_of(characters), _ENCODED]))


_ENDLESS_LABEL = sequence(repeat(one_of(_WORD), 1), repeat(sequence("-", repeat(one_of(_WORD), 1))))
ENDLESS_HOST = sequence(_ENDLESS_LABEL, repeat(sequence(".", _ENDLESS_LABEL)))
_ENDLESS_ATOM = repeat(one_of(_ATOM_SIGNS), 1)
ENDLESS_EMAIL = sequence(
    _ENDLESS_ATOM, repeat(sequence(".", _ENDLESS_ATOM)), "@", ENDLESS_HOST, ".", _TOP_LABEL
)
MAX_LABEL = 63
"""Characters of a label of a host name, and nearly those of what stands before the @."""

_ENDLESS_PATH = _any_signs(_PATH_SIGNS | Characters.of("/"))
_ENDLESS_REST = sequence(
    optional(sequence("?", _any_signs(_PATH_SIGNS | Characters.of("/?")))),
    optional(sequence("#", _any_signs(_PATH_SIGNS | Characters.of("/?")))),
)
ENDLESS_URI = sequence(
    one_of(_LETTERS),
    repeat(one_of(_WORD | Characters.of("+.-"))),
    ":",
    choice(
        [
            sequence(
                "//", ENDLESS_HOST, optional(_PORT), optional(sequence("/", _ENDLESS_PATH)),
                _ENDLESS_REST,
            ),
            sequence("///", _ENDLESS_PATH, _ENDLESS_REST),
            sequence(one_of(_PATH_SIGNS), _ENDLESS_PATH, _ENDLESS_REST),
        ]
    ),
)  # fmt: skip
"""URIs of any length, whose automaton is small: what stands beside them sets a limit."""
