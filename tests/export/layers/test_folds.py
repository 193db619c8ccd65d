"""Folds of the export against the modules that train, in float64 where float32 hides a difference."""

import dataclasses

import pytest

torch = pytest.importorskip("torch")

from export.layers import attention, fold, positions
from export.layers.common import ChannelBatchNorm, Pointwise, double, upsample
from export.layers.rotary_vit import FoldedRotaryAttention, RotaryAttention, RotaryVitConfig
from export.models.samwise import Samwise
from export.networks.samwise import stages
from export.stages.conditional_memory import reweight
from export.stages.cross_modal_adapter import AdapterStage, from_patches, to_patches
from export.stages.hiera import FoldedBlock
from export.stages.memory_attention import MemoryAttentionStage
from helpers.toy_networks import toy_samwise_config


def close(a, b, tolerance=2e-6):
    assert a.shape == b.shape
    assert ((a - b).norm() / b.norm()).item() <= tolerance, ((a - b).norm() / b.norm()).item()


@pytest.fixture(scope="module")
def network():
    return lively(toy_samwise_config())


def lively(config):
    """A network whose every parameter and running statistic matters."""
    torch.manual_seed(1)
    model = Samwise(config)
    for name, value in model.state_dict().items():
        if value.is_floating_point() and (value.dim() < 2 or "embed" in name):
            value.copy_(value + 0.3 * torch.randn(value.shape)) if "running_var" not in name else value.uniform_(0.5, 2)
    return model.eval()


@pytest.fixture(scope="module")
def clip(network):
    """A clip through the whole model, and through its stages."""
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randn(3, 3, 64, 64, generator=generator)
    tokens = torch.randint(0, 100, (7,), generator=generator)
    with torch.no_grad():
        whole = network.encode_clip(pixels[None], tokens[None])
    known = {"pixels": pixels, "tokens": tokens}
    for stage in stages(network):
        if all(t.name in known for t in stage.spec.inputs):
            known |= stage.run({t.name: known[t.name] for t in stage.spec.inputs})
    return whole, known


def test_clip_stages_equal_the_whole_model(network, clip):
    whole, known = clip
    close(known["embedding"], whole.embedding[0])
    close(known["high_res_0"], whole.high_res_0[0])
    close(known["high_res_1"], whole.high_res_1[0])
    close(known["text_2_fused"], whole.text[0])
    close(known["embedding_no_memory"], network.add_no_mem_embed(whole.embedding)[0])
    close(known["sparse"], network.prompt(whole.text))


def test_frame_stages_equal_the_whole_model(network, clip):
    _whole, known = clip
    cut = {s.name: s for s in stages(network)}
    index = torch.tensor([2, 0])
    sparse = torch.cat((known["sparse"], known["sparse"].flip(1)))
    conditioned = known["embedding_no_memory"][index]
    out = cut["mask_decoder"].run(
        {
            "conditioned": conditioned,
            "sparse": sparse,
            "sparse_count": torch.tensor([3, 2]),
            "map_index": index,
            "high_res_0": known["high_res_0"],
            "high_res_1": known["high_res_1"],
            "picture_index": index,
        }
    )
    for i, count in enumerate((3, 2)):
        at = slice(i, i + 1)
        with torch.no_grad():
            alone = network.decode(
                conditioned[at], sparse[at, :count], known["high_res_0"][index[at]], known["high_res_1"][index[at]]
            )
        for name in ("low_res_logits", "iou", "score", "obj_ptr", "early_token"):
            close(out[name][at], getattr(alone, {"obj_ptr": "pointer"}.get(name, name)), 1e-5)
    slot = cut["memory_encoder"].run(
        {"embedding": known["embedding"], "map_index": index, "mask_logits": out["low_res_logits"]}
    )["maskmem_features"]
    close(slot, network.encode_memory(known["embedding"][index], out["low_res_logits"]).detach())
    high = upsample(out["low_res_logits"], 64)
    assert torch.equal(upsample(high, 64), high)
    answer = cut["conditional_memory"].run(
        {
            "obj_ptr": out["obj_ptr"],
            "early_token": out["early_token"],
            "low_res_logits": out["low_res_logits"],
            "memoryless_logits": out["low_res_logits"].flip(0),
        }
    )
    close(answer["decision"], network.cme_logits(out["obj_ptr"], out["early_token"]).detach())
    other = upsample(out["low_res_logits"].flip(0), 64)
    for i in range(2):
        switch = answer["decision"][i].argmax().item() == 1
        assert answer["switched"][i].item() is switch
        expected = torch.where(other[i] > 0, 10 * other[i], high[i]) if switch else high[i]
        assert torch.equal(answer["remembered_logits"][i], expected)


def test_reweight():
    logits, memoryless = torch.randn(2, 5, 5), torch.randn(2, 5, 5)
    mixed = reweight(logits, memoryless, torch.tensor([True, False]))
    assert torch.equal(mixed[1], logits[1])
    assert torch.equal(mixed[0], torch.where(memoryless[0] > 0, 10 * memoryless[0], logits[0]))


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("impl", attention.ATTENTION_IMPLS)
@torch.no_grad()
def test_memory_attention_implementations(network, wide, impl):
    generator = torch.Generator().manual_seed(3)
    shapes = ((3, 16, 32), (2, 4, 16, 16), (2, 5, 32))
    embedding, memory, pointers = (torch.randn(s, generator=generator) for s in shapes)
    ages, index = torch.tensor([[3, 1, 0, 5], [0, 1, 2, 3]]), torch.tensor([2, 0])
    expected = network.attend_memory(embedding[index], memory, ages, pointers)
    stage = MemoryAttentionStage(network.sam.memory_attention, network.sam.maskmem_tpos_enc, wide).eval()
    with attention.attention_impl(impl):
        close(stage(embedding, index, memory, ages, pointers)[0], expected)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = stage(embedding, index, memory[:, order], ages[:, order], pointers.flip(1))[0]
    close(shuffled, expected)


@torch.no_grad()
def test_memory_attention_pointer_positions():
    config = toy_samwise_config()
    model = lively(dataclasses.replace(config, sam=dataclasses.replace(config.sam, pointer_positions=True)))
    sam, generator = model.sam, torch.Generator().manual_seed(4)
    x, memory, pointers = (torch.randn(s, generator=generator) for s in ((1, 16, 32), (1, 2, 16, 16), (1, 3, 32)))
    ages, distance = torch.tensor([[6, 0]]), torch.tensor([[0.2, 1.0, 1.6]])
    places = sam.obj_ptr_tpos_proj(positions.sine_distance(distance, 32))
    stage = MemoryAttentionStage(sam.memory_attention, sam.maskmem_tpos_enc, False, sam.obj_ptr_tpos_proj).eval()
    ours = stage(x, torch.tensor([0]), memory, ages, pointers, distance)[0]
    close(ours, sam.attend_memory(x, memory, ages, pointers, places))
    assert (ours - sam.attend_memory(x, memory, ages, pointers)).abs().max() > 1e-3


@pytest.mark.parametrize("patches", [(4, 2, 1), (2, 2, 2), (0, 0, 0)])
@torch.no_grad()
def test_adapter_fold(patches):
    config = toy_samwise_config()
    model = lively(dataclasses.replace(config, adapter=dataclasses.replace(config.adapter, patches=patches)))
    for adapter, width, side in zip(model.cmt_adapters, config.sam.hiera.widths[1:], (8, 4, 2), strict=True):
        vision, text = torch.randn(3, side, side, width), torch.randn(5, 24)
        added, text_added = adapter(vision[None], text[None])
        for impl in attention.ATTENTION_IMPLS:
            with attention.attention_impl(impl):
                fused, text_fused = AdapterStage(adapter).eval()(vision, text)
            close(fused, vision + added[0])
            close(text_fused, text + text_added[0])


@torch.no_grad()
def test_linear_folds():
    torch.manual_seed(5)
    a, b, norm = Pointwise(6, 8), Pointwise(8, 5, transposed=True), ChannelBatchNorm(8).eval()
    norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2), norm.weight.normal_(), norm.bias.normal_()
    a.bias.normal_(), b.bias.normal_()
    x = torch.randn(2, 3, 4, 6)
    close(fold.compose(a, b)(x), b(a(x)))
    close(fold.with_batch_norm(a, norm)(x), norm(a(x)))
    convolution = torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), a.weight, a.bias)
    close(a(x), convolution.permute(0, 2, 3, 1))
    transposed = torch.nn.functional.conv_transpose2d(convolution, b.weight, b.bias)
    close(b(a(x)), transposed.permute(0, 2, 3, 1))
    up, head = torch.nn.ConvTranspose2d(8, 6, 2, 2), torch.nn.Conv2d(6, 5, 1)
    close(fold.compose_transposed(up, head)(convolution), head(up(convolution)))
    blur = torch.nn.Conv2d(8, 6, 3, padding=1)
    close(fold.compose_convolution(blur, a)(convolution).permute(0, 2, 3, 1), a(blur(convolution).permute(0, 2, 3, 1)))
    nearest = torch.nn.functional.interpolate(x.permute(0, 3, 1, 2), scale_factor=2, mode="nearest")
    assert torch.equal(double(x), nearest.permute(0, 2, 3, 1))


@torch.no_grad()
def test_attention_without_biases():
    """Zero inputs among the keys (padding) included: they attend with the biases alone."""
    torch.manual_seed(8)
    packed = attention.PackedAttention(12, 3)
    packed.in_proj_bias.normal_(), packed.out_proj.bias.normal_()
    folded = fold.FoldedAttention(packed.in_proj_weight, packed.in_proj_bias, packed.out_proj, 3)
    q, k = torch.randn(2, 5, 12), torch.cat((torch.randn(2, 4, 12), torch.zeros(2, 2, 12)), 1)
    close(folded(q, k), packed(q, k))
    assert folded.k.bias is None and folded.v.bias is None


@pytest.mark.parametrize("window", [True, False])
@torch.no_grad()
def test_rotary_attention(window):
    torch.manual_seed(9)
    config = RotaryVitConfig(image_size=56, patch=7, width=32, window=4, head_width=16)
    module = RotaryAttention(config, window)
    x = torch.randn(2, 16 if window else 64, 32)
    close(FoldedRotaryAttention(module)(x), module(x))


@pytest.mark.parametrize("block", range(6))
@torch.no_grad()
def test_trunk_blocks(network, block):
    """Windowed, padded, pooled and global blocks."""
    blocks = network.sam.trunk.blocks
    x = torch.randn(2, *[(16, 16), (16, 16), (8, 8), (8, 8), (4, 4), (4, 4)][block], blocks[block].norm1.weight.numel())
    for impl in attention.ATTENTION_IMPLS:
        with attention.attention_impl(impl):
            close(FoldedBlock(blocks[block]).eval()(x), blocks[block](x))


def test_rotation_orders_agree():
    torch.manual_seed(6)
    cos, sin = positions.rotation_tables(4, 32)
    q, k, order = torch.randn(1, 16, 32), torch.randn(1, 16, 32), positions.pairs_to_halves(32)
    pairs = positions.rotate_pairs(q, cos, sin) @ positions.rotate_pairs(k, cos, sin).mT
    halves = positions.rotate_halves(q[..., order], cos, sin) @ positions.rotate_halves(k[..., order], cos, sin).mT
    close(halves, pairs)
    # complex multiplication is what the rotation stands for
    turned = torch.view_as_complex(q.unflatten(-1, (16, 2))) * torch.complex(cos, sin)
    close(positions.rotate_pairs(q, cos, sin), torch.view_as_real(turned).flatten(-2))


def test_rotation_needs_distances_only():
    """A dot product of rotated vectors depends on how far apart two cells are, not on where they are."""
    cos, sin = positions.rotation_tables(8, 16)
    q, k = torch.randn(16), torch.randn(16)
    grid = positions.rotate_pairs(q.expand(64, 16), cos, sin) @ positions.rotate_pairs(k.expand(64, 16), cos, sin).T
    grid = grid.reshape(8, 8, 8, 8)
    assert torch.allclose(grid[1, 2, 3, 5], grid[4, 0, 6, 3], atol=1e-4)


def test_patches_round_trip():
    x = torch.arange(2 * 3 * 4 * 6).float().reshape(1, 2, 4, 6, 3)[..., :3]
    patches = to_patches(x, 2)
    assert torch.equal(patches[1, 1], x[0, 1, :2, 2:4].reshape(4, 3))  # second patch, second frame, row-major inside
    assert torch.equal(from_patches(patches.flatten(1, 2), 2, 4, 6), x)


@pytest.mark.parametrize("impl", attention.ATTENTION_IMPLS)
@pytest.mark.parametrize("heads, value", [(1, 8), (1, 3), (4, 8)])
def test_attend_is_attention(impl, heads, value):
    torch.manual_seed(7)
    q, k, v = torch.randn(4, 6, 8), torch.randn(4, 5, 8), torch.randn(4, 5, value)
    mask = torch.rand(4, 5) > 0.4
    mask[:, 0] = True
    for visible in (None, mask):

        def split(x):
            return x.double().unflatten(2, (heads, -1)).transpose(1, 2)

        scores = split(q) @ split(k).mT / (8 / heads) ** 0.5
        if visible is not None:
            scores = scores.masked_fill(~visible[:, None, None], float("-inf"))
        expected = (scores.softmax(-1) @ split(v)).transpose(1, 2).flatten(2).float()
        for cut in (None, (1, 3), *([(0, 2)] if visible is None else [])):
            with attention.attention_impl(impl):
                close(attention.attend(q, k, v, heads, visible, cut), expected)


def test_unknown_implementation():
    with pytest.raises(ValueError, match="not one of plain, chunked, ort"):
        attention.attention_impl("fast").__enter__()
