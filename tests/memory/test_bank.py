"""The bank's persistence and its errors (its arithmetic: tests/facts/test_romo_facts.py)."""

import pytest
import torch

from consilience.errors import InputError
from consilience.memory.bank import Bank


def test_rows_are_part_of_the_state():
    bank = Bank(3, 2)
    bank.fill(torch.randn(3, 2))
    other = Bank(3, 2)
    other.load_state_dict(bank.state_dict())
    assert torch.equal(other.rows, bank.rows)


def test_wrong_shape_is_named():
    with pytest.raises(InputError, match=r"\(3, 2\).*\(4, 2\)"):
        Bank(3, 2).fill(torch.randn(4, 2))
