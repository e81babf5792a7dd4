# SPDX-License-Identifier: LGPL-2.1-or-later
"""JSON's text is that of the json module, without its spaces."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest

from kvmchand.wire.jsontext import from_json, to_json
from rig.paths import SITE

VALUES: list[object] = [
    None,
    True,
    0,
    -(2**63),
    10**30,
    "",
    "plain",
    'quote " and \\ and / and \x01\x7f',
    "\u20ac \U0001f600 \ud800",
    [],
    [1, [2, [3]]],
    {},
    {"type": "grant", "path": "/local/domain/0", "list": [{"a": 1}, {"b": None}]},
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_is_written_and_read_as_by_json(value: object) -> None:
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    assert to_json(value) == text
    assert from_json(text) == value
    assert from_json(json.dumps(value)) == value


@pytest.mark.parametrize("text", ["", " ", "[", "[1,]", "{", '{"a"}', "'a'", '"a', "1 2", "[1]]", "nul"])
def test_what_is_no_json_of_ours_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        from_json(text)


def test_too_many_digits_and_too_deep_lists_are_refused() -> None:
    with pytest.raises(ValueError):
        from_json("9" * 5000)
    for deep in ("[" * 100_000, "[" * 9000 + "]" * 9000, '{"a":' * 5000 + "1" + "}" * 5000, '[{"a":' * 200 + "1" + "}]" * 200):
        with pytest.raises(ValueError, match="lists"):
            from_json(deep)


def test_a_long_list_is_not_deep_nor_are_brackets_in_a_string() -> None:
    values: list[object] = [[{"a": [{}, []]}] * 5000, ["["] * 90, "[" * 100, [[[[[[[[1]]]]]]]]]
    for value in values:
        assert from_json(json.dumps(value)) == value


def test_what_is_no_value_is_not_written() -> None:
    for value in ({1, 2}, b"bytes", float("nan")):
        with pytest.raises((TypeError, ValueError)):
            to_json(value)


def test_changed_text_is_judged_as_json_judges_it() -> None:
    chance = random.Random(1)
    base = json.dumps({"type": "x", "list": [1, -2, "\u20ac\\n", None, True, {"a": {}}]}, separators=(",", ":"))
    for _ in range(20_000):
        text = list(base)
        for _ in range(chance.randint(1, 3)):
            text[chance.randrange(len(text))] = chance.choice('{}[]",:\\0123456789-+.eEtruefalsn \x00\ud800')
        changed = "".join(text)
        try:
            expected = json.loads(changed)
        except ValueError:
            with pytest.raises(ValueError):
                from_json(changed)
        else:
            assert repr(from_json(changed)) == repr(expected)


def test_it_does_without_the_c_functions_of_json() -> None:
    code = "import sys, types; sys.modules['_json'] = types.ModuleType('_json'); sys.path.insert(0, sys.argv[1])\n"
    code += "from kvmchand.wire import jsontext; print(jsontext.from_json(jsontext.to_json({'a': ['\u20ac']})))"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-X", "utf8", "-c", code, str(SITE)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "{'a': ['\u20ac']}\n"
