from __future__ import annotations

import inspect

import pytest

from raybench.errors import UserError
from raybench.options import check_options, checked_options, option_names


@checked_options
def toy(root, download=False, *, path, size=3):
    """A plug-in with one option that it needs and one with a default."""
    return root, download, path, size


def anything(root, **options):
    return options


def bare(root):
    return root


def test_options_are_the_keyword_only_parameters():
    assert option_names(toy) == ("path", "size")
    assert option_names(bare) == option_names(anything) == ()
    assert list(inspect.signature(toy).parameters) == ["root", "download", "path", "size"]


def test_good_calls_go_through():
    assert toy("r", True, path="p") == ("r", True, "p", 3)
    assert toy(root="r", download=False, path="p", size=4) == ("r", False, "p", 4)
    check_options(anything, {"whatever": 1})


def test_unknown_option():
    with pytest.raises(UserError, match=r"option of toy must be one that it has, got 'sise'; did you mean size\?"):
        toy("r", path="p", sise=4)
    with pytest.raises(UserError, match="got 'xyz'; its options: path, size"):
        check_options(toy, {"xyz": 1})
    with pytest.raises(UserError, match="option of bare must be one that it has, got 'size'; its options: none"):
        check_options(bare, {"size": 1})


def test_missing_option():
    with pytest.raises(UserError, match="toy must be given the option path, got none; add it as `path:"):
        toy("r")


def test_errors_inside_the_function_are_not_disguised():
    @checked_options
    def broken(root, *, size=1):
        raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        broken(None, size=2)
