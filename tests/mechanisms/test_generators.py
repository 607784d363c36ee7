import pytest
import torch

from raybench.mechanisms.generators import NoiseGenerator
from raybench.seeding import seeded_globals


def made(shape, **options):
    with seeded_globals(0):
        return NoiseGenerator(shape, **options)


def test_official_shapes_and_parameter_count():
    grey = made((1, 28, 28))
    z = grey.noise(4, torch.Generator().manual_seed(0))
    assert z.shape == (4, 128)
    assert grey.project(z).shape == (4, 8192)
    assert grey(z).shape == (4, 1, 28, 28)
    assert sum(p.numel() for p in grey.parameters()) == 1_281_923  # counted on the official network
    assert grey.draw[-2].kernel_size == (7, 7)
    colour = made((3, 32, 32))
    assert colour(z).shape == (4, 3, 32, 32)
    assert colour.draw[-2].kernel_size == (3, 3)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 64, 64), (1, 12, 20), (2, 29, 31), (1, 5, 9)])
def test_every_size_is_met(shape):
    generator = made(shape, width=4, latent_dim=3)
    assert generator(torch.zeros(2, 3)).shape == (2, *shape)


def test_images_start_near_zero_mean_and_unit_variance():
    generator = made((3, 32, 32), width=8, latent_dim=16)
    with torch.no_grad():
        images = generator(generator.noise(64, torch.Generator().manual_seed(1)))
    assert images.mean((0, 2, 3)).abs().max() < 1e-4
    assert (images.var((0, 2, 3)) - 1).abs().max() < 1e-2


def test_noise_comes_from_the_given_generator():
    generator = made((1, 8, 8), width=2, latent_dim=5)
    a, b = (generator.noise(3, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(a, b)


@pytest.mark.parametrize("options", [{"width": 1}, {"latent_dim": 0}])
def test_impossible_sizes_are_refused(options):
    with pytest.raises(ValueError, match="width of at least 2"):
        NoiseGenerator((1, 8, 8), **options)
