"""The networks for images."""

import pytest
import torch

from d3pm_fast.train.unet import CategoricalUNet, UNet

T = 50


@pytest.mark.parametrize("sides", [(28, 28), (5, 7)])
def test_unet_keeps_the_sides_of_an_image_and_hears_the_time(sides):
    torch.manual_seed(0)
    unet = UNet(inside=3, outside=2, num_steps=T, width=16)
    for block in (block for blocks in unet.up for block in blocks):
        torch.nn.init.normal_(block.second.weight)  # zero at the start: the time has no say
    x_t = torch.randn(1, 3, *sides).expand(2, -1, -1, -1)
    y = unet(x_t, torch.tensor([1, T]))
    assert y.shape == (2, 2, *sides)
    assert not torch.allclose(y[0], y[1])


def test_categorical_unet_gives_contiguous_logits_and_never_the_mask():
    unet = CategoricalUNet(num_classes=5, num_steps=T, width=16, mask_id=4)
    logits = unet(torch.randint(0, 5, (2, 9, 6)), torch.tensor([3, 7]))
    assert logits.shape == (2, 9, 6, 5)
    assert logits.is_contiguous()
    assert logits[..., 4].eq(-torch.inf).all()
    assert logits[..., :4].isfinite().all()
