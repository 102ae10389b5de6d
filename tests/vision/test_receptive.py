"What a position of the features can see: against the sum over layers of Araujo et al., and by changing pixels"

import pytest, torch
from torch import nn
from fastai.vision.all import DataLoaders, Learner
from fastai_condmtl.vision.all import FlowError, receptive_field


def by_formula(layers):
    "Pixels and step of a chain of `(kernel, stride, dilation)`: r = 1 + Σ (k-1)·d·(step so far)"
    pixels, step = 1, 1
    for kernel, stride, dilation in layers:
        pixels += (kernel - 1) * dilation * step
        step *= stride
    return pixels, step


def conv(n_in, n_out, kernel, stride, dilation):
    return nn.Conv2d(n_in, n_out, kernel, stride, dilation * (kernel // 2), dilation)


def pool(kernel, stride, dilation):
    return nn.MaxPool2d(kernel, stride, kernel // 2, dilation)


BETWEEN = dict(
    nothing=lambda: nn.Identity(),
    batch_norm=lambda: nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()),
    group_norm=lambda: nn.Sequential(nn.GroupNorm(2, 4), nn.ReLU()),
    instance_norm=lambda: nn.Sequential(nn.InstanceNorm2d(4, affine=True), nn.ReLU()),
    prelu=lambda: nn.PReLU(4),
)


@pytest.mark.parametrize('between', list(BETWEEN))
@pytest.mark.parametrize('layers', [[(3, 1, 1), (3, 2, 1)], [(5, 2, 1), (3, 1, 2)], [(3, 2, 3), (1, 1, 1)]])
def test_a_chain_of_layers(between, layers):
    first, second = layers
    body = nn.Sequential(conv(3, 4, *first), BETWEEN[between](), conv(4, 2, *second))
    pixels, step = by_formula(layers)
    assert receptive_field(body) == (pixels, pixels, step, step)


@pytest.mark.parametrize('dilation', [1, 2])
def test_pools_of_any_dilation_alone_and_within(dilation):
    for body, layers in (
        (pool(3, 2, dilation), [(3, 2, dilation)]),
        (nn.Sequential(conv(3, 4, 3, 1, 1), pool(3, 2, dilation)), [(3, 1, 1), (3, 2, dilation)]),
    ):
        pixels, step = by_formula(layers)
        assert receptive_field(body) == (pixels, pixels, step, step)


class Scaled(nn.Module):
    "A branch whose share is a parameter a channel, as in ConvNeXt"

    def __init__(self):
        super().__init__()
        self.branch, self.gamma = nn.Conv2d(3, 3, 7, padding=3), nn.Parameter(torch.full((3,), 1e-6))

    def forward(self, x):
        return x + self.gamma.view(1, -1, 1, 1) * self.branch(x)


def test_a_branch_with_a_scale_of_each_channel_is_seen():
    assert receptive_field(Scaled())[:2] == (7, 7)


SMALL = dict(
    scaled=lambda: Scaled(),
    strided=lambda: nn.Sequential(conv(3, 4, 5, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 2, 3, 2, 2)),
)


@pytest.mark.parametrize('name', list(SMALL))
def test_pixels_within_count_and_others_do_not(name):
    "One row of pixels after the other is changed: the rows that change the middle position are those of the field"
    torch.manual_seed(0)
    body = SMALL[name]().double().eval()
    for p in body.parameters():
        p.data.uniform_(0.1, 1)
    x = torch.rand(1, 3, 64, 8, dtype=torch.float64)
    with torch.no_grad():
        before = body(x)
        middle = before.shape[2] // 2
        rows = []
        for row in range(x.shape[2]):
            changed = x.clone()
            changed[:, :, row] += 1
            if (body(changed) != before)[:, :, middle].any():
                rows.append(row)
    assert receptive_field(body).height == rows[-1] - rows[0] + 1


WRONG = dict(
    no_positions=(nn.Flatten(), {}, 'have no positions'),
    channels=(nn.Conv2d(1, 4, 3), {}, 'n_in=3'),
    wider_than_the_strips=(nn.Conv2d(3, 4, 128, 128), {}, 'thin=64'),
    nothing_read=(nn.Hardtanh(2.0, 3.0), {}, 'reads no pixel'),
)


@pytest.mark.parametrize('what', list(WRONG))
def test_what_has_no_field(what):
    body, args, text = WRONG[what]
    with pytest.raises(FlowError, match=text):
        receptive_field(body, **args)


def test_a_network_for_gray_pictures():
    body = nn.Sequential(nn.Conv2d(1, 4, 3))
    learn = Learner(DataLoaders([], []), nn.Sequential(body, nn.Flatten()), loss_func=nn.MSELoss())
    assert receptive_field(body, n_in=1) == learn.receptive_field(n_in=1) == (3, 3, 1, 1)
    assert receptive_field(nn.Conv2d(3, 4, 128, 128), thin=256) == (128, 128, 128, 128)
