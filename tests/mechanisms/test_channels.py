"""Channel means, and slices by qualified name."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from raybench.mechanisms.channels import channels_of, gather, noisy_responses, scatter, watch_channels
from raybench.models.lenet5 import lenet5


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def test_means_are_those_of_the_layers_outputs():
    model = lenet5(10, (1, 28, 28)).eval()
    images = torch.randn(3, 1, 28, 28)
    with torch.no_grad(), watch_channels(model) as found:
        outputs = model(images)
        columns, channels = channels_of(found)
        first = model.blocks[0][0](images).mean((2, 3))
    assert columns.shape == (3, 6 + 16 + 120 + 84 + 10)
    torch.testing.assert_close(columns[:, :6], first)
    torch.testing.assert_close(columns[:, -10:], outputs)
    assert channels[0] == ("blocks.0.0", 0)
    assert channels[-1] == ("head", 9)
    assert all(len(module._forward_hooks) == 0 for module in model.modules())


def test_layers_of_one_shape_do_not_collide():
    """The official code's keys do: printed forms of the layers."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Conv2d(1, 2, 3, bias=False))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    chosen = [("1", 2), ("2", 1)]
    values = gather(dict(model.named_parameters()), chosen)
    assert len(values) == 5 + 9
    scatter(model, chosen, values + 1.0)
    after = dict(model.named_parameters())
    assert torch.equal(before["0.weight"], after["0.weight"])
    moved = {name: (after[name] - p).detach() for name, p in before.items()}
    assert moved["1.weight"].abs().sum(1).nonzero().flatten().tolist() == [2]
    assert moved["1.bias"].nonzero().flatten().tolist() == [2]
    torch.testing.assert_close(moved["2.weight"][1], torch.ones(1, 3, 3))
    torch.testing.assert_close(gather(after, chosen), values + 1.0)


def test_noisy_copies_average_over_the_group():
    model = lenet5(10, (1, 28, 28)).eval()
    batch = (torch.randn(2, 1, 28, 28), torch.tensor([3, 4]))
    columns, losses, channels = noisy_responses(model, loss, batch, 5, 0.0, torch.Generator())
    with torch.no_grad():
        torch.testing.assert_close(losses, loss(model, batch).mean().expand(5))
    assert columns.shape == (5, len(channels))
    torch.testing.assert_close(columns[0], columns[4])
    noisy, _, _ = noisy_responses(model, loss, batch, 700, 0.1, torch.Generator().manual_seed(0))
    assert len(noisy) == 700
    assert float(noisy.std(0).min()) > 0.0
