import copy

import pytest
import torch
from torch import nn

from raybench.mechanisms.synthetic import fit_images
from raybench.seeding import seeded_globals


def parts(n=7):
    with seeded_globals(0):
        model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    images = torch.randn(n, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    return model, images, torch.arange(n) % 3


def test_one_step_is_adam_on_the_mean_loss_with_clipped_entries():
    model, images, labels = parts()
    twin = copy.deepcopy(model)
    options = {"epochs": 1, "batch_size": 7, "lr": 0.1, "weight_decay": 0.01, "clip_value": 0.02}
    fit_images(
        model,
        images,
        lambda x, rows: nn.functional.cross_entropy(model(x), labels[rows], reduction="none"),
        torch.Generator().manual_seed(0),
        **options,
    )
    adam = torch.optim.Adam(twin.parameters(), lr=0.1, weight_decay=0.01)
    nn.functional.cross_entropy(twin(images), labels).backward()
    for p in twin.parameters():
        p.grad.clamp_(-0.02, 0.02)
    adam.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def seen_rows(n, **options):
    model, images, _ = parts(n)
    seen = []

    def loss(shown, rows):
        assert torch.equal(shown, images[rows])
        seen.append(rows.tolist())
        return model(shown).sum(1)

    fit_images(model, images, loss, torch.Generator().manual_seed(0), lr=0.1, **options)
    return seen


def test_an_epoch_holds_every_copy_once_in_random_order():
    seen = seen_rows(5, epochs=2, batch_size=4, copies=4)
    assert [len(rows) for rows in seen] == [4, 4, 4, 4, 4] * 2
    first, second = ([row for rows in epoch for row in rows] for epoch in (seen[:5], seen[5:]))
    assert sorted(first) == sorted(list(range(5)) * 4) == sorted(second)
    assert first != second


@pytest.mark.parametrize(("n", "sizes"), [(9, [4, 4]), (10, [4, 4, 2]), (1, [1])])
def test_a_last_batch_of_one_is_left_out_unless_there_is_no_other(n, sizes):
    assert [len(rows) for rows in seen_rows(n, epochs=1, batch_size=4)] == sizes


def test_modes_and_epochs():
    model, images, _ = parts()
    norm = nn.Sequential(nn.BatchNorm2d(1), model).eval()
    modes, epochs = [], []

    def loss(shown, _):
        modes.append(norm.training)
        return norm(shown).sum(1)

    def after(epoch):
        epochs.append((epoch, norm.training))

    fit_images(norm, images, loss, torch.Generator(), epochs=2, batch_size=7, lr=0.1, after_epoch=after)
    assert modes == [True, True]
    assert epochs == [(1, False), (2, False)]
    assert not norm.training
    assert norm[0].num_batches_tracked == 2
