"""Shard folders with weights: what is read from the command line, and every mistake."""

from __future__ import annotations

from fractions import Fraction

import pytest

from engine.config.mixture import SHARE_UNIT, parse_shards, source_names
from engine.config.pretrain import DataConfig


def shares(text: str) -> dict[str, int]:
    return {folder.path: folder.share for folder in parse_shards(text)}


def test_one_folder_gives_all_rows(tmp_path):
    assert shares("shards/") == {"shards/": SHARE_UNIT}
    odd = tmp_path / "a:0.7,b"
    odd.mkdir()
    assert shares(str(odd)) == {str(odd): SHARE_UNIT}  # a folder that is there is meant, whatever its name
    assert shares("en:2") == {"en": SHARE_UNIT}


def test_weights_become_whole_rows_in_ten_thousand():
    assert shares("a:0.7,b:0.3") == {"a": 7000, "b": 3000}
    assert shares("a:7, b:3") == {"a": 7000, "b": 3000}
    assert shares("a:1,b:1,c:1") == {"a": 3334, "b": 3333, "c": 3333}
    assert shares("/data/x:1e-3,rel/y:0.999") == {"/data/x": 10, "rel/y": 9990}


@pytest.mark.parametrize("weights", [(3, 5, 11), (0.1, 0.2, 0.3, 0.4), (1, 9999), (0.123456, 0.5)])
def test_no_share_is_off_by_more_than_one_row(weights):
    found = list(shares(",".join(f"s{number}:{weight}" for number, weight in enumerate(weights))).values())
    whole = sum(Fraction(str(weight)) for weight in weights)
    assert sum(found) == SHARE_UNIT
    for share, weight in zip(found, weights, strict=True):
        assert abs(share - SHARE_UNIT * Fraction(str(weight)) / whole) < 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:0.7,b", "data.shards: b has no weight beside other folders; give all as a:0.7,b:0.3"),
        ("a:0.7,,b:0.3", "data.shards has an empty part between two commas"),
        ("a:x,b:0.3", "data.shards: the weight of a is 'x'; it must be a number, as in a:0.7"),
        ("a:0,b:1", "data.shards: the weight of a is 0; it must be above 0, and finite"),
        ("a:-1,b:1", "data.shards: the weight of a is -1; it must be above 0"),
        ("a:nan,b:1", "data.shards: the weight of a is nan; it must be above 0"),
        ("a:inf,b:1", "data.shards: the weight of a is inf; it must be above 0"),
        ("a:0.5,a:0.5", "data.shards names a twice; give each folder once, with one weight"),
        (
            "a:1,b:100000",
            "data.shards: the weight 1 of a is less than 1 row in 10,000; raise it or leave the folder out",
        ),
    ],
)
def test_mistakes_are_told(text, message):
    assert message in DataConfig(shards=text).problems()[0]


def test_names_are_short_where_they_differ():
    assert source_names(["data/news", "wiki/"]) == ["news", "wiki"]
    assert source_names(["en/shards", "zh/shards"]) == ["en/shards", "zh/shards"]
