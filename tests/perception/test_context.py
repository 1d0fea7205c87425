"""Context tokens and the path of target states against torch's own encoder layers."""

from __future__ import annotations

import functools

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Bounded, Categorical, Composite, Unbounded

from perception.context import ContextEncoder, FlatState, StateSequence
from perception.image import ResNet18
from perception.normalize import FittedNorm
from perception.pixels import PixelEncoder
from worldmodels.nn.positions import grid_sinusoids

B, T, S, E, C = 3, 5, 4, 7, 8
SIZES = {"dim": C, "depth": 2, "num_heads": 2, "hidden": 12, "num_tasks": 6}

pytestmark = pytest.mark.usefixtures("float64")


def spec_of(**more: object) -> Composite:
    return Composite(observation=Composite(state=Unbounded((S,)), **more))


def make_encoder(**options: object) -> ContextEncoder:
    scene, task = Unbounded((E,)), Categorical(6, shape=(), dtype=torch.int64)
    encoder = ContextEncoder(spec_of(environment_state=scene, task_index=task), **SIZES, **options)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.4)
    return encoder


def make_obs(*shape: int) -> TensorDict:
    leaves = {"state": torch.randn(*shape, S), "environment_state": torch.randn(*shape, E)}
    return TensorDict({**leaves, "task_index": torch.randint(6, shape)}, batch_size=shape[:1])


def theirs_of(encoder: ContextEncoder) -> nn.Sequential:
    """torch's post-norm layers with the weights of ours, and the final norm."""
    layers = []
    for block in encoder.blocks.blocks:
        layer = nn.TransformerEncoderLayer(C, 2, 12, dropout=0.0, batch_first=True)
        with torch.no_grad():
            layer.self_attn.in_proj_weight.copy_(block.attention.qkv.weight)
            layer.self_attn.in_proj_bias.copy_(block.attention.qkv.bias)
            layer.self_attn.out_proj.load_state_dict(block.attention.out.state_dict())
            layer.linear1.weight.copy_(block.feed_forward[0].weight)
            layer.linear2.weight.copy_(block.feed_forward[2].weight)
            nn.init.zeros_(layer.linear1.bias)
            nn.init.zeros_(layer.linear2.bias)
            layer.norm1.load_state_dict(block.norm_attention.state_dict())
            layer.norm2.load_state_dict(block.norm_feed_forward.state_dict())
        layers.append(layer)
    norm = nn.LayerNorm(C)
    norm.load_state_dict(encoder.blocks.norm.state_dict())
    return nn.Sequential(*layers, norm)


def test_a_context_is_task_state_and_scene_without_places() -> None:
    encoder, obs = make_encoder(is_normalized=False), make_obs(B)
    names = ("state", "environment_state")
    tokens = [obs[name] @ encoder.embed[name].weight.T + encoder.embed[name].bias for name in names]
    tokens.insert(0, encoder.embed_task.weight[obs["task_index"]])
    out = encoder(obs)
    torch.testing.assert_close(out["tokens"], theirs_of(encoder)(torch.stack(tokens, 1)))
    torch.testing.assert_close(out["pooled"], out["tokens"].mean(1))
    assert encoder.grid == (3,)


def test_tokens_are_those_that_the_data_have() -> None:
    assert ContextEncoder(spec_of(), **SIZES)(make_obs(B))["tokens"].shape == (B, 1, C)
    assert ContextEncoder(spec_of(environment_state=Unbounded((E,))), **SIZES).grid == (2,)


def test_a_picture_is_the_cells_of_its_map_in_the_place_of_the_scene() -> None:
    pixels = Bounded(0, 255, (3, 40, 64), dtype=torch.uint8)
    spec = spec_of(environment_state=Unbounded((E,)), pixels=pixels)
    picture = functools.partial(ResNet18, has_small_stem=False, has_map=True, has_group_norms=True, width=4)
    encoder = ContextEncoder(spec, **SIZES, picture=picture)
    assert encoder.grid == (1 + 2 * 2,)
    assert list(encoder.norms) == ["state"], "the scene's numbers are not seen, though the data have them"
    obs = make_obs(B).set("pixels", torch.randint(0, 256, (B, 3, 40, 64), dtype=torch.uint8))
    cells = encoder.picture.encoder(obs)["tokens"] @ encoder.picture.project.weight.T + encoder.picture.project.bias
    tokens = torch.cat([encoder.embed["state"](obs["state"])[:, None], cells + grid_sinusoids((2, 2), C)], 1)
    torch.testing.assert_close(encoder(obs)["tokens"], theirs_of(encoder)(tokens))
    alone = encoder(obs[:1])["tokens"]
    torch.testing.assert_close(encoder(obs)["tokens"][:1], alone, msg="group norms know nothing of the batch")
    both = ContextEncoder(spec, **SIZES, picture=picture, sees=["state", "environment_state", "pixels"])
    assert both.grid == (2 + 2 * 2,)
    assert ContextEncoder(spec, **SIZES, sees=["state", "environment_state"]).picture is None


def test_targets_hold_no_copy_of_what_states_do_not_go_through() -> None:
    pixels = Bounded(0, 255, (3, 24, 24), dtype=torch.uint8)
    spec = spec_of(pixels=pixels, task_index=Categorical(6, shape=(), dtype=torch.int64))
    encoder = ContextEncoder(spec, **SIZES, picture=functools.partial(PixelEncoder, dim=4))
    assert encoder.grid == (3,), "an encoder without a map gives one token"
    kept = {id(parameter) for parameter in StateSequence(encoder, T).parameters()}
    assert kept == {id(parameter) for name, parameter in encoder.named_parameters() if not name.startswith("picture.")}


def test_states_of_a_sequence_have_places_and_the_task_stands_in_front() -> None:
    encoder, obs = make_encoder(is_normalized=False), make_obs(B)
    state, is_valid = torch.randn(B, T, S), torch.arange(T) < torch.tensor([5, 2, 1])[:, None]
    place, channel = torch.arange(T)[:, None], torch.arange(C)
    angle = place / 10_000 ** (2 * (channel // 2) / C)
    code = torch.where(channel % 2 == 0, angle.sin(), angle.cos())
    x = state @ encoder.embed["state"].weight.T + encoder.embed["state"].bias + code
    x = torch.cat([encoder.embed_task.weight[obs["task_index"]][:, None], x], 1)
    for layer in list(theirs_of(encoder))[:-1]:
        x = layer(x, src_key_padding_mask=torch.cat([torch.zeros(B, 1, dtype=torch.bool), ~is_valid], 1))
    expected = theirs_of(encoder)[-1](x)[:, 1:]
    found = StateSequence(encoder, T + 2)(state, obs["task_index"], is_valid)
    torch.testing.assert_close(found[is_valid], expected[is_valid])


def test_padded_states_change_no_other() -> None:
    encoder = make_encoder()
    path, state = StateSequence(encoder, T), torch.randn(B, T, S)
    is_valid = torch.arange(T) < torch.tensor([5, 2, 1])[:, None]
    other = torch.where(is_valid[..., None], state, torch.randn_like(state))
    task = torch.zeros(B, dtype=torch.int64)
    torch.testing.assert_close(path(state, task, is_valid)[is_valid], path(other, task, is_valid)[is_valid])


def test_statistics_are_taken_once() -> None:
    encoder, obs = make_encoder(), make_obs(B)
    plain = encoder(obs)["tokens"]
    mean, std = ({"state": torch.rand(S), "environment_state": torch.rand(E)} for _ in range(2))
    encoder.fit(TensorDict({"mean": mean, "std": std}))
    scaled = obs.copy().update({name: obs[name] * std[name] + mean[name] for name in mean})
    torch.testing.assert_close(encoder(scaled)["tokens"], plain)
    encoder.fit(TensorDict({"mean": mean, "std": {name: 2 * value for name, value in std.items()}}))
    torch.testing.assert_close(encoder(scaled)["tokens"], plain)


def test_fitted_norms_go_back_and_refuse_nonsense() -> None:
    norm, x = FittedNorm(2), torch.randn(5, 2)
    norm.fit(torch.tensor([1.0, -1.0]), torch.tensor([2.0, 0.5]))
    torch.testing.assert_close(norm(x), (x - torch.tensor([1.0, -1.0])) / torch.tensor([2.0, 0.5]))
    torch.testing.assert_close(norm.inverse(norm(x)), x)
    for std in ([1.0, 0.0], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="must be finite, deviations positive"):
            FittedNorm(2).fit(torch.zeros(2), torch.tensor(std))


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match=r"observations have pixels. Use encoder=pixels"):
        ContextEncoder(Composite(observation=Composite(pixels=Unbounded((3, 8, 8)))), **SIZES)
    shown = spec_of(pixels=Bounded(0, 255, (3, 8, 8), dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"encoder.picture=null: pictures are to be seen"):
        ContextEncoder(shown, **SIZES)
    with pytest.raises(ValueError, match=r"encoder.sees=\['state', 'scene'\]: the data have no scene .*'pixels'"):
        ContextEncoder(shown, **SIZES, sees=["state", "scene"])
    with pytest.raises(ValueError, match=r"encoder=context needs observation/state in the data, and must see it"):
        ContextEncoder(shown, **SIZES, sees=["pixels"])
    with pytest.raises(ValueError, match=r"flat_state sees no pictures.*Use encoder=context"):
        FlatState(shown)
    with pytest.raises(ValueError, match=r"num_tasks=6: the data have 9 tasks"):
        ContextEncoder(spec_of(task_index=Categorical(9, shape=(), dtype=torch.int64)), **SIZES)
    with pytest.raises(ValueError, match="keep must be None"):
        make_encoder()(make_obs(B), torch.zeros(B, 1, dtype=torch.int64))
