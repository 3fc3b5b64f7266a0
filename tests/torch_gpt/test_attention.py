"""The mask of our own that attention is given where PyTorch's is not trusted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from torch_gpt import attention


@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (1, 7), (3, 7)])
def test_a_mask_of_our_own_does_what_pytorchs_does(queries: int, keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    q = torch.randn(2, 3, queries, 4, generator=draw)
    k, v = (torch.randn(2, 3, keys, 4, generator=draw) for _ in "kv")
    trusted = attention.causal_attention(q, k, v, 0.5, 0.0)
    asked: list[Any] = []
    right = F.scaled_dot_product_attention

    def attend(*x: Any, **how: Any) -> Any:
        asked.append(how)
        return right(*x, **how)

    monkeypatch.setattr(F, "scaled_dot_product_attention", attend)
    monkeypatch.setattr(attention, "mask_leaks", lambda *_: True)
    # The same sums by another kernel: some units in the last place.
    assert torch.allclose(attention.causal_attention(q, k, v, 0.5, 0.0), trusted, rtol=0, atol=1e-6)
    assert [how["is_causal"] for how in asked] == [False]
