"""Types whose values are strings of one form: what the grammar lets through, pydantic takes."""

from __future__ import annotations

import ipaddress
import json

import pydantic
import pytest
from texts import schema_fits

from adapter.grammar.annotation_schema import annotation_schema
from adapter.grammar.json_schema import json_schema_grammar


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
