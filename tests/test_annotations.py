"""Annotations of our packages are checked while tests run: a check that never fails would protect nothing."""

from __future__ import annotations

import inspect

import jaxtyping
import pytest
import torch
from beartype import beartype
from beartype.roar import BeartypeCallHintParamViolation, BeartypeCallHintReturnViolation

from tests import annotations
from worldmodels.spelling import did_you_mean


def test_a_wrong_argument_is_refused():
    with pytest.raises(BeartypeCallHintParamViolation, match="did_you_mean"):
        did_you_mean(3, ["three"])


def test_a_pause_lets_it_through(unchecked):
    with pytest.raises(TypeError) as error:
        did_you_mean(3, ["three"])
    assert not isinstance(error.value, BeartypeCallHintParamViolation)


def test_a_wrong_result_is_refused():
    def half(number: int) -> int:
        return number / 2

    checked = annotations.check(half, typechecker=None)
    assert inspect.signature(checked) == inspect.signature(half)
    with pytest.raises(BeartypeCallHintReturnViolation):
        checked(3)


def test_a_name_that_only_type_checkers_know_is_not_checked():
    def same(value: Unknown, number: int) -> Unknown:  # noqa: F821
        return value

    checked = annotations.check(same, typechecker=None)
    assert checked("any", 1) == "any"
    with pytest.raises(BeartypeCallHintParamViolation):
        checked("any", "number")


def test_shapes_go_through_jaxtyping():
    names = {"Float": jaxtyping.Float, "Tensor": torch.Tensor}
    exec("def first(x: Float[Tensor, 'B D'], y: Float[Tensor, 'B']): return x[0]", names)
    checked = annotations.check(names["first"], typechecker=beartype)
    checked(torch.zeros(2, 3), torch.zeros(2))
    with pytest.raises(jaxtyping.TypeCheckError):
        checked(torch.zeros(2, 3), torch.zeros(3))
