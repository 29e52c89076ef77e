"""The decoder's equations in NumPy, float64: what a model's logits are without rounding."""

import numpy as np


def rms_norm(config, x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.rms_norm_eps) * scale


def silu(x):
    return x / (1 + np.exp(-x))


def rotate(config, x_bthd, positions_bt):
    """Pairs (i, i + H / 2) turn by position * theta^(-2 i / H)."""
    half = config.head_dim // 2
    angle = positions_bt[:, :, None, None] * config.rope_theta ** (-np.arange(half) / half)
    first, second = x_bthd[..., :half], x_bthd[..., half:]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attention(config, p, x_btd, positions_bt, segments_bt):
    q, k, v = (np.einsum("btd,dnh->btnh", x_btd, p[f"attention.{name}"]) for name in "qkv")
    if config.attention_bias:
        q, k, v = (x + p[f"attention.{name}_bias"] for x, name in zip((q, k, v), "qkv", strict=True))
    q = rotate(config, rms_norm(config, q, p["attention.q_norm.scale"]), positions_bt)
    k = rotate(config, rms_norm(config, k, p["attention.k_norm.scale"]), positions_bt)
    group = config.num_attention_heads // config.num_key_value_heads
    k, v = (x.repeat(group, axis=2) for x in (k, v))
    scores = np.einsum("btnh,bsnh->bnts", q, k) / config.head_dim**0.5
    visible = np.tri(x_btd.shape[1], dtype=bool) & (segments_bt[:, :, None] == segments_bt[:, None])
    scores = np.where(visible[:, None], scores, -np.inf)
    probs = np.exp(scores - scores.max(-1, keepdims=True))
    out = np.einsum("bnts,bsnh->btnh", probs / probs.sum(-1, keepdims=True), v)
    y = np.einsum("btnh,nhd->btd", out, p["attention.o"])
    return y + p["attention.o_bias"] if config.attention_bias else y


def experts(config, p, x_btd, segments_bt, given_btk=None):
    """The layer's output, its router's statistics over tokens that are not padding, and the experts that tokens are sent to.

    Tokens with experts in `given_btk` are sent there; -1 in the first place leaves the choice to the router.
    """
    logits = x_btd @ p["mlp.router"]
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    chosen = np.argsort(-probs, axis=-1)[..., : config.num_experts_per_tok]
    if given_btk is not None:
        chosen = np.where(given_btk[..., :1] >= 0, given_btk, chosen)
    share = np.zeros_like(probs)
    np.put_along_axis(share, chosen, np.take_along_axis(probs, chosen, -1), -1)
    load = (share > 0).astype(float)
    if config.norm_topk_prob:
        share /= share.sum(-1, keepdims=True)
    hidden = silu(np.einsum("btd,edf->btef", x_btd, p["mlp.gate"])) * np.einsum("btd,edf->btef", x_btd, p["mlp.up"])
    y = np.einsum("btef,efd,bte->btd", hidden, p["mlp.down"], share)
    valid = segments_bt > 0
    stats = dict(
        load=load[valid].sum(0),
        prob=probs[valid].sum(0),
        entropy=-(probs * np.log(probs))[valid].sum(),
        tokens=valid.sum(),
    )
    return y, stats, chosen


def decoder(config, params, tokens_bt, positions_bt=None, segments_bt=None, given_btlk=None):
    """Logits [B, T, V] and the routers' statistics, one dictionary per MoE layer, with its experts under "chosen".

    Args:
        config: the architecture.
        params: `flatten` of a model whose layers are not stacked, or such values in float64.
        tokens_bt: token ids; by default rows are one document each, from position 0.
        given_btlk: of each MoE layer, see `experts`.
    """
    if positions_bt is None:
        positions_bt = np.tile(np.arange(tokens_bt.shape[1]), (len(tokens_bt), 1))
    if segments_bt is None:
        segments_bt = np.ones_like(tokens_bt)
    params = {name: value.astype(np.float64) for name, value in params.items()}
    x, router = params["embed"][tokens_bt], []
    for layer in range(config.num_hidden_layers):
        prefix = f"groups.{layer}."
        p = {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}
        normed = rms_norm(config, x, p["attention_norm.scale"])
        x = x + attention(config, p, normed, positions_bt, segments_bt)
        normed = rms_norm(config, x, p["mlp_norm.scale"])
        sparse = config.num_experts and (layer + 1) % config.decoder_sparse_step == 0
        if sparse and layer not in config.mlp_only_layers:
            given = None if given_btlk is None else given_btlk[:, :, len(router)]
            y, stats, chosen = experts(config, p, normed, segments_bt, given)
            router.append(stats | {"chosen": chosen})
        else:
            y = (silu(normed @ p["mlp.gate"]) * (normed @ p["mlp.up"])) @ p["mlp.down"]
        x = x + y
    x = rms_norm(config, x, params["norm.scale"])
    return x @ (params["embed"].T if config.tie_word_embeddings else params["lm_head"]), router
