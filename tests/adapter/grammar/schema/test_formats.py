"""Types whose values are strings of one form: what the grammar lets through, pydantic takes."""

from __future__ import annotations

import ipaddress
import json
from typing import Annotated

import pydantic
import pytest
from texts import schema_fits

from adapter.grammar.schema.annotations import annotation_schema
from adapter.grammar.schema.json_schema import json_schema_grammar


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        (
            ipaddress.IPv4Address,
            ["127.0.0.1", "255.249.199.99", "0.0.0.0"],
            ["256.1.1.1", "1.2.3", "01.2.3.4", "1.2.3.4.5", ""],
        ),
        (
            ipaddress.IPv6Address,
            ["2001:db8:0:0:0:0:0:1", "ABCD:ef01:2345:6789:abcd:ef01:2345:6789"],
            ["2001:db8", "12345:0:0:0:0:0:0:1", "g:0:0:0:0:0:0:1"],
        ),
        (pydantic.IPvAnyAddress, ["10.0.0.1", "1:2:3:4:5:6:7:8"], ["10.0.0", "1:2"]),
        (ipaddress.IPv4Interface, ["10.1.2.3/8", "10.1.2.3/32"], ["10.1.2.3/33", "10.1.2.3/"]),
        (
            ipaddress.IPv4Network,
            ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32"],
            ["10.1.2.3/8", "10.1.2.3/24", "10.0.0.0/7x"],
        ),
        (
            ipaddress.IPv6Network,
            ["1:2:3:4:5:6:7:8/128", "2001:db8:0:1::/64", "2001:db8:0::/48"],
            ["1:2:3:4:5:6:7:8/64", "2001:db8/32"],
        ),
        (ipaddress.IPv6Interface, ["1:2:3:4:5:6:7:8/64"], ["1:2:3:4:5:6:7:8/129"]),
        (
            pydantic.HttpUrl,
            ["https://example.org", "http://a.b-c.de:8080/x/%20y?q=1&r=2#top"],
            ["example.org", "ftp://example.org", "https://", "https://a b", "https://1.2.3"],
        ),
        (pydantic.AnyUrl, ["wss://example.org/x", "ftp://me@example.org"], ["://x", "http:"]),
        (pydantic.PostgresDsn, ["postgres://me:pw@db.local:5432/x"], ["http://db/x"]),
        (pydantic.FileUrl, ["file:///etc/hosts"], ["/etc/hosts"]),
        (pydantic.Base64Bytes, ["", "Zg==", "Zm8=", "Zm9v"], ["Z", "Zh==", "Zm9", "Zm9v="]),
        (
            Annotated[bytes, pydantic.Field(min_length=2, max_length=4)],
            ["ab", "abcd"],
            ["a", "abcde", "ééé"],
        ),
        (complex, ["1+2j", "-0.5-1.25j", "3"], ["1+2", "j1", "one"]),
    ],
)
def test_what_fits_is_a_value_of_the_type(tiny, annotation, good, bad):
    schema = annotation_schema(annotation)
    assert not json_schema_grammar(json.dumps(schema)).unchecked
    for text in good:
        assert schema_fits(tiny, schema, json.dumps(text)), text
        pydantic.TypeAdapter(annotation).validate_python(text)
    for text in bad:
        assert not schema_fits(tiny, schema, json.dumps(text)), text


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (
            "email",
            ["a@b.de", "first.last+tag@mail.example-site.org"],
            ["a@b", "@b.de", "a@.de", "a..b@c.de", "a@b.c", "a@b@c.de", "a b@c.de"],
        ),
        ("hostname", ["localhost", "a-b.example.org"], ["-a", "a..b", "a_b", ""]),
        (
            "uri",
            ["https://example.org/a?b#c", "mailto:a@b.de", "urn:isbn:0", "file:///x"],
            ["no", "http://a b", "1x:y", "//host/path"],
        ),
        ("iri", ["https://my-own-host-name:5050"], ["no", "http://a b"]),
        (
            "uri-reference",
            ["https://a.de", "/", "/a//b?c", "a/b:c#d", "..", "#top"],
            ["a b", "a\\b", "%2", "<x>"],
        ),
        (
            "duration",
            ["PT1H", "PT5M", "PT1H30M", "PT2S", "P3D", "P1DT2H"],
            ["PT", "P", "PT1H2S", "P1DT", "1H", "PT1M1H"],
        ),
    ],
)
def test_formats_of_json_schemas(tiny, kind, good, bad):
    schema = {"type": "string", "format": kind, "minLength": 1, "maxLength": 2048}
    assert not json_schema_grammar(json.dumps(schema)).unchecked
    assert all(schema_fits(tiny, schema, json.dumps(text)) for text in good)
    assert not any(schema_fits(tiny, schema, json.dumps(text)) for text in bad)


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (
            {"format": "uri", "maxLength": 24},
            ["https://example.org/a%20", "mailto:a@b.de", "x://h:8080?q#f"],
            ["https://example.org/a%20b", "no", "x:a b", "https://a..b", "x:"],
        ),
        (
            {"format": "uri", "pattern": "^https://"},
            ["https://a.de/b?c#d"],
            ["http://a.de", "https://", "https:// a"],
        ),
        ({"format": "hostname", "maxLength": 12}, ["a-b.example"], ["a--b", "a.example.org", "a."]),
        ({"format": "email", "maxLength": 10}, ["a.b@c.de"], ["a@b", "abc@example.org", ".a@b.de"]),
    ],
)
def test_a_format_is_held_to_beside_other_demands(tiny, schema, good, bad):
    schema = {"type": "string", **schema}
    assert not json_schema_grammar(json.dumps(schema)).unchecked
    assert [text for text in good if not schema_fits(tiny, schema, json.dumps(text))] == []
    assert [text for text in bad if schema_fits(tiny, schema, json.dumps(text))] == []


def test_a_uri_beside_what_is_too_large_to_say_keeps_its_own_limit(tiny):
    schema = {"type": "string", "format": "uri", "maxLength": 1000}
    assert json_schema_grammar(json.dumps(schema)).unchecked == ("maxLength",)
    assert schema_fits(tiny, schema, json.dumps("https://a.de/" + 100 * "a"))
    assert not schema_fits(tiny, schema, json.dumps("https://a.de/" + 300 * "a"))


def test_a_uuid_may_be_of_any_variant(tiny):
    text = '"12345678-1234-1234-1234-123456789012"'
    assert schema_fits(tiny, {"type": "string", "format": "uuid"}, text)
    assert not schema_fits(tiny, {"type": "string", "format": "uuid1"}, text)


@pytest.mark.parametrize("kind", ["positiveInteger", "int32"])
def test_a_format_that_no_validator_knows_says_nothing_of_the_type(tiny, kind):
    for text in ("5", '"five"', "{}"):
        assert schema_fits(tiny, {"format": kind}, text)
    assert json_schema_grammar(json.dumps({"format": kind})).unchecked == (f"format {kind}",)
    whole = json_schema_grammar(json.dumps({"type": "integer", "format": kind}))
    assert whole.unchecked == ()


def test_an_option_with_a_format_that_no_validator_knows_is_kept(tiny):
    schema = {"anyOf": [{"type": "string", "format": "ports"}, {"type": "number"}]}
    assert schema_fits(tiny, schema, '"80:80"')
    assert json_schema_grammar(json.dumps(schema)).unchecked == ("format ports",)
    schema["anyOf"][0]["format"] = "regex"  # one of JSON Schema's own, which no grammar has
    assert not schema_fits(tiny, schema, '"80:80"')


@pytest.mark.parametrize(
    ("kind", "least", "most"),
    [
        ("duration", "PT0.1S", "PT0.2S"),
        ("duration", "-PT0.2S", "-PT0.1S"),
        ("naive-date-time", "2024-01-01T00:00:00.100000", "2024-01-01T00:00:00.200000"),
    ],
)
def test_fractions_are_written_where_no_whole_second_is(tiny, kind, least, most):
    schema = {"type": "string", "format": kind, "formatMinimum": least, "formatMaximum": most}
    assert not json_schema_grammar(json.dumps(schema)).unchecked
    for one in (least, most):
        beyond = one.replace(".1", ".0").replace(".2", ".3")
        assert schema_fits(tiny, schema, json.dumps(one))
        assert not schema_fits(tiny, schema, json.dumps(beyond))


@pytest.mark.parametrize(
    ("least", "most", "longest"),
    [(0, 1024, 1023), (3, 1001, 962), (990, 1010, 1010), (0, 1001, 959)],
)
def test_long_texts_are_counted(tiny, least, most, longest):
    schema = {"type": "string", "minLength": least, "maxLength": most}
    assert not json_schema_grammar(json.dumps(schema)).unchecked
    counts = {0, 1, least - 1, least, least + 1, 500, 995, longest, longest + 1, most + 1} - {-1}
    taken = {count for count in counts if schema_fits(tiny, schema, json.dumps("a" * count))}
    assert taken == {count for count in counts if least <= count <= longest}


def test_a_text_too_long_to_count_is_reported():
    schema = {"type": "string", "maxLength": 64_001}
    assert json_schema_grammar(json.dumps(schema)).unchecked == ("maxLength",)
