"""The network against a plain DeepLabV3+: counts, the factored decoder, windows, frozen backbones."""


import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import BACKBONE, CPU, noise, stir_norms, tiny_model
from torch import Tensor, nn

from meal_gpu.config import ModelConfig
from meal_gpu.data.pixels import normalise
from meal_gpu.grid import Grid
from meal_gpu.network.dropout import Dropout
from meal_gpu.network.model import ASPP, RATES, Decoder, DeepLabV3Plus
from meal_gpu.network.windows import Axis, Windows, along


def trainable(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


# --- the network as the paper has it ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "frozen", "count"), [(11, True, 4_001_771), (11, False, 5_813_483),
                                                          (19, True, 4_003_827), (19, False, 5_815_539)])
def test_parameter_counts_are_the_papers(classes, frozen, count):
    model = DeepLabV3Plus(classes, ModelConfig(weights="none", freeze_backbone=frozen))
    assert trainable(model) == count
    assert sum(p.numel() for p in model.backbone.parameters()) == 1_811_712
    assert trainable(model.backbone) == (0 if frozen else 1_811_712)


def test_the_default_is_the_papers_network():
    model = DeepLabV3Plus(num_classes=11)
    assert trainable(model) == 4_001_771
    assert isinstance(dict(model.named_children())["backbone"], nn.Module)


def test_head_weights_are_kaiming_normal():
    """Deviation sqrt(2 / fan_in) and mean 0, within four standard errors of the estimate; biases 0."""
    model = tiny_model(seed=3)
    for module in [*model.aspp.modules(), *model.decoder.modules()]:
        if isinstance(module, nn.Conv2d):
            weight = module.weight.detach().double()
            deviation = (2 / weight[0].numel()) ** 0.5
            assert abs(float(weight.std()) / deviation - 1) < 4 / (2 * weight.numel()) ** 0.5
            assert abs(float(weight.mean())) < 4 * deviation / weight.numel() ** 0.5
            if module.bias is not None:
                assert not module.bias.any()


# --- a plain reference: convolutions as written, in float64 -----------------------------------------------------------


def plain_conv(block: nn.Sequential, x: Tensor, dilation: int = 1) -> Tensor:
    conv, norm = block[0], block[1]
    x = F.conv2d(x, conv.weight, padding=dilation * (conv.weight.shape[2] // 2), dilation=dilation)
    if norm.training:
        x = F.batch_norm(x, None, None, norm.weight, norm.bias, True, eps=norm.eps)
    else:
        x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, eps=norm.eps)
    return x.relu()


def plain_aspp(aspp: ASPP, high: Tensor) -> Tensor:
    branches = [plain_conv(aspp.point, high)]
    branches += [plain_conv(block, high, rate) for block, rate in zip(aspp.atrous, RATES, strict=True)]
    pooled = plain_conv(aspp.pool, F.adaptive_avg_pool2d(high, 1))
    branches.append(F.interpolate(pooled, high.shape[2:], mode="bilinear", align_corners=True))
    return plain_conv(aspp.project, torch.cat(branches, 1))


def plain_decoder(decoder: Decoder, low: Tensor, aspp: Tensor) -> Tensor:
    up = F.interpolate(aspp, low.shape[2:], mode="bilinear", align_corners=True)
    x = plain_conv(decoder.fuse, torch.cat([plain_conv(decoder.low, low), up], 1))
    x = plain_conv(decoder.refine, x)
    return F.conv2d(x, decoder.classify.weight, decoder.classify.bias)


class Head(nn.Module):
    """ASPP and decoder of 8 channels in float64, with batch-norms as after training and dropout off."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.aspp, self.decoder = ASPP(5, 8), Decoder(4, 3, 8)
        stir_norms(self, seed)
        self.double().eval()

    def training_without_dropout(self) -> "Head":
        self.train()
        for module in self.modules():
            if isinstance(module, Dropout):
                module.eval()
        return self


def maps(low: tuple[int, int], high: tuple[int, int], batch: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, c, *size, generator=draw, dtype=torch.float64).requires_grad_()
                 for c, size in ((4, low), (5, high)))


def double(at: Windows) -> Windows:
    return Windows(*(Axis(*(value.double() for value in vars(axis).values())) for axis in (at.rows, at.cols)))


def gradients(output: Tensor, weights: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad((output * weights).sum(), inputs, allow_unused=True)
    return [torch.zeros_like(i) if g is None else g for g, i in zip(found, inputs, strict=True)]


# Even, odd, one larger than a multiple, one cell at stride 16, equal sizes (output stride 4), wide and flat.
@pytest.mark.parametrize(("low", "high"), [((16, 24), (4, 6)), ((23, 30), (6, 8)), ((17, 9), (5, 3)), ((5, 4), (1, 1)),
                                           ((6, 7), (6, 7)), ((1, 20), (1, 5)), ((2, 2), (1, 1))], ids=str)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_the_factored_decoder_is_the_plain_formula(low, high, training):
    """Forward and all gradients: per-tap products at stride 16 and then interpolation, against concat and conv3x3."""
    head = Head()
    if training:
        head.training_without_dropout()
    low_map, _ = maps(low, high)
    aspp = torch.randn(2, 8, *high, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    factored, plain = head.decoder(low_map, aspp), plain_decoder(head.decoder, low_map, aspp)
    torch.testing.assert_close(factored, plain, atol=1e-9, rtol=1e-9)
    weights = torch.randn(plain.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    inputs = [low_map, aspp, *head.decoder.parameters()]
    for a, b in zip(gradients(factored, weights, inputs), gradients(plain, weights, inputs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("high", [(4, 6), (23, 30), (1, 1), (20, 3)], ids=str)
def test_the_aspp_is_the_plain_formula(high):
    head = Head()
    _, x = maps((1, 1), high)
    torch.testing.assert_close(head.aspp(x), plain_aspp(head.aspp, x), atol=1e-10, rtol=1e-10)


@st.composite
def layouts(draw) -> tuple[Grid, tuple[int, int], tuple[int, int]]:
    """Grids that divide their images and grids that do not; maps of strides 4 and 8 to 32, rounded up or down."""
    rows, cols = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    grid = Grid(rows, cols, draw(st.integers(2 * rows, 130)), draw(st.integers(2 * cols, 130)))
    stride, up = draw(st.sampled_from([8, 16, 32])), draw(st.booleans())

    def cells(n: int, by: int) -> int:
        return -(-n // by) if up else max(n // by, 1)

    low, high = ((cells(grid.height, by), cells(grid.width, by)) for by in (4, stride))
    return grid, low, high


@settings(max_examples=60)
@given(layouts())
def test_windows_decode_what_the_whole_map_decodes(layout):
    """The logits of every pixel of every patch, from its window, against the plain network on the whole image."""
    grid, low_size, high_size = layout
    head = Head()
    low, high = (m.detach() for m in maps(low_size, high_size, batch=1))
    whole = plain_decoder(head.decoder, low, plain_aspp(head.aspp, high))
    whole = F.interpolate(whole, (grid.height, grid.width), mode="bilinear", align_corners=True)
    cells = torch.arange(grid.cells)
    at = double(Windows.of_grid(grid, low_size, high_size, RATES, CPU).of(cells))
    low, high = (m.expand(grid.cells, -1, -1, -1) for m in (low, high))
    window = head.decoder.windows(low, head.aspp.windows(high, at), at)
    pixels = along(at.rows.pixels, at.cols.pixels, window.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    for cell in range(grid.cells):
        y0, x0, y1, x1 = grid.box(cell)
        # The matrices are rounded to float32.
        torch.testing.assert_close(pixels[cell], whole[0, :, y0:y1, x0:x1], atol=2e-5, rtol=2e-5)


# A corner, an edge and the middle of a grid that divides; a remainder; one patch that is the image.
@pytest.mark.parametrize(("grid", "cell"), [(Grid(4, 4, 96, 128), 0), (Grid(4, 4, 96, 128), 7),
                                            (Grid(4, 4, 96, 128), 10), (Grid(3, 2, 61, 75), 5),
                                            (Grid(1, 1, 24, 40), 0)], ids=str)
def test_gradients_through_windows(grid, cell):
    """As of a loss on the patch's pixels alone through the plain network."""
    head = Head()
    low_size, high_size = (-(-grid.height // 4), -(-grid.width // 4)), (-(-grid.height // 16), -(-grid.width // 16))
    low, high = maps(low_size, high_size, batch=1)
    at = double(Windows.of_grid(grid, low_size, high_size, RATES, CPU).of(torch.tensor([cell])))
    window = head.decoder.windows(low, head.aspp.windows(high, at), at)
    pixels = along(at.rows.pixels, at.cols.pixels, window.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    y0, x0, y1, x1 = grid.box(cell)
    whole = plain_decoder(head.decoder, low, plain_aspp(head.aspp, high))
    whole = F.interpolate(whole, (grid.height, grid.width), mode="bilinear", align_corners=True)[..., y0:y1, x0:x1]
    weights = torch.randn(whole.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    inputs = [low, high, *head.parameters()]
    for a, b in zip(gradients(pixels, weights, inputs), gradients(whole, weights, inputs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4 * float(b.abs().max().clamp(min=1e-3)), rtol=1e-4)


@settings(max_examples=25)
@given(layouts())
def test_batch_norm_sees_no_padding(layout):
    """Under every window, each batch-norm is given a crop of what it is given on the whole image: nothing beside it."""
    grid, low_size, high_size = layout
    head = Head()
    low, high = (m.detach() for m in maps(low_size, high_size, batch=1))
    seen: dict[nn.Module, Tensor] = {}
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda module, inputs: seen.__setitem__(module, inputs[0][0]))
    head.decoder(low, head.aspp(high))
    whole = dict(seen)
    assert len(whole) == 9
    windows = Windows.of_grid(grid, low_size, high_size, RATES, CPU)
    for cell in range(grid.cells):
        at = double(windows.of(torch.tensor([cell])))
        head.decoder.windows(low, head.aspp.windows(high, at), at)
        for module, crop in seen.items():
            h, w = crop.shape[1:]
            crops = whole[module].unfold(1, h, 1).unfold(2, w, 1)  # [C, y, x, h, w]
            off = (crops - crop[:, None, None]).detach().abs().amax((0, 3, 4))
            assert float(off.min()) < 1e-4


def test_running_statistics_in_training_are_of_the_windows():
    """The first batch-norm of the decoder, by hand: the low-level cells of the windows with their halo, none twice."""
    grid, low_size, high_size = Grid(2, 2, 64, 64), (16, 16), (4, 4)
    head = Head().training_without_dropout()
    norm = head.decoder.low[1]
    norm.reset_running_stats()
    low, high = (m.detach() for m in maps(low_size, high_size))
    at = double(Windows.of_grid(grid, low_size, high_size, RATES, CPU).of(torch.tensor([0, 3])))
    head.decoder.windows(low, head.aspp.windows(high, at), at)
    # Pixels 0 … 31 of 64 lie on cells 0 … 8 of 16 (31 * 15 / 63 = 7.4); a halo of 2 on each side makes 13 cells, at the
    # border all of them from inside the image. Pixels 32 … 63 mirror that.
    crops = torch.stack([low[0, :, :13, :13], low[1, :, 3:, 3:]])
    values = F.conv2d(crops, head.decoder.low[0].weight)
    torch.testing.assert_close(norm.running_mean, 0.1 * values.mean((0, 2, 3)), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * values.var((0, 2, 3)), atol=1e-6, rtol=1e-5)


# --- the whole network ------------------------------------------------------------------------------------------------

# A size that everything divides; odd sizes with a remainder in the grid; a patch that is one cell; one patch.
SIZES = [((64, 96), (2, 3)), ((57, 83), (3, 4)), ((33, 47), (8, 11)), ((65, 49), (1, 1))]


@pytest.mark.parametrize(("size", "grid"), SIZES, ids=str)
@pytest.mark.parametrize("backbone", [BACKBONE, "resnet18"])
def test_window_logits_are_those_of_the_image(backbone, size, grid):
    model = tiny_model(backbone=backbone).eval()
    stir_norms(model.aspp)
    stir_norms(model.decoder)
    images, tiling = noise(1, *size), Grid(*grid, *size)
    with torch.no_grad():
        whole = model(images)
        low, high = model.features(normalise(images))
        at = Windows.of_grid(tiling, low.shape[2:], high.shape[2:], RATES, CPU).of(torch.arange(tiling.cells))
        window = model.window_logits(low.expand(tiling.cells, -1, -1, -1), high.expand(tiling.cells, -1, -1, -1), at)
        pixels = along(at.rows.pixels, at.cols.pixels, window.permute(0, 2, 3, 1))
    assert whole.shape == (1, 3, *size)
    scale = float(whole.abs().max())
    for cell in range(tiling.cells):
        y0, x0, y1, x1 = tiling.box(cell)
        torch.testing.assert_close(pixels[cell], whole[0, :, y0:y1, x0:x1].permute(1, 2, 0), atol=1e-4 * scale, rtol=0)


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_output_strides(stride):
    model = tiny_model(output_stride=stride).eval()
    with torch.no_grad():
        low, high = model.features(normalise(noise(1, 64, 96)))
    assert low.shape[2:] == (16, 24)
    assert high.shape[2:] == (64 // stride, 96 // stride)


def test_a_frozen_backbone_is_a_constant():
    model = tiny_model().train()
    images = noise(2, 32, 48)
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    model(images).square().mean().backward()
    assert all(p.grad is None and not p.requires_grad for p in model.backbone.parameters())
    assert all(p.grad is not None for part in (model.aspp, model.decoder) for p in part.parameters())
    assert not any(module.training for module in model.backbone.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())


def test_a_finetuned_backbone_learns():
    model = tiny_model(freeze_backbone=False).train()
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    model(noise(2, 32, 48)).square().mean().backward()
    assert all(p.grad is not None for p in model.backbone.parameters())
    assert all(module.training for module in model.backbone.modules())
    changed = [name for name, value in model.backbone.state_dict().items() if not torch.equal(value, before[name])]
    assert any("running_mean" in name for name in changed)


def test_no_gradient_where_none_is_wanted():
    model = tiny_model(freeze_backbone=False).eval()
    with torch.no_grad():
        low, _ = model.features(normalise(noise(1, 32, 32)))
    assert not low.requires_grad
    assert model.features(normalise(noise(1, 32, 32)))[0].requires_grad
