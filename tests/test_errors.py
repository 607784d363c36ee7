"""The two shapes of an error that people can mend."""

from __future__ import annotations

from raybench.errors import UserError, nearest, unknown


def test_user_error_is_one_line() -> None:
    assert str(UserError("a rule,\n  a value\tand\r\nthe way out")) == "a rule, a value and the way out"


def test_unknown_names_the_nearest() -> None:
    said = str(unknown("method", "deepclaen", ["gkt", "deepclean", "finetune"]))
    assert said == "method must be a registered name, got 'deepclaen'; did you mean deepclean?"


def test_unknown_lists_what_is_known_where_nothing_is_near() -> None:
    assert str(unknown("method", "zzz", ["b", "a"])) == "method must be a registered name, got 'zzz'; known: a, b"
    assert str(unknown("method", "zzz", [])).endswith("known: none")
    assert str(unknown("method", "zzz", [f"a{i:02}" for i in range(33)])).endswith("a28, a29, and 3 more")


def test_nearest_is_ordered_and_bounded() -> None:
    assert nearest("fintune", ["influence", "finetune"]) == ["finetune"]
    assert nearest("lr", ["lr_decay", "lrr", "momentum"]) == ["lrr"]
    assert nearest("accuracy", [f"accuracy{i}" for i in range(9)], 2) == ["accuracy8", "accuracy7"]
