"""Attention, of torch and written by hand. Sequences are [batch, time, features]."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from tests.zoo.cases import Of, ids, refused, taken, x

TIME, WIDTH, HEADS = 5, 8, 2
SEQUENCE = x(TIME, WIDTH)
KEEP = {"keep": ("float32", (TIME,))}
FLAGS = {"keep": (0.0, 2.0)}


def attention(**options: object) -> nn.MultiheadAttention:
    return nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **options)  # type: ignore[arg-type]


def layer(**options: object) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(WIDTH, HEADS, 16, **({"batch_first": True} | options))  # type: ignore[arg-type]


def encoder(**options: object) -> nn.TransformerEncoder:
    return nn.TransformerEncoder(layer(), 1, **options)  # type: ignore[arg-type]


def padded(keep: torch.Tensor) -> torch.Tensor:
    """Returns which steps are padding; the first one never is."""
    return torch.cat([torch.zeros_like(keep[:, :1], dtype=torch.bool), keep[:, 1:] < 1.0], 1)


def masked_encoder(m: Of, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Returns the mean over the steps that are not padding."""
    mask = padded(keep)
    weight = (~mask).float().unsqueeze(-1)
    return (m.encoder(x, src_key_padding_mask=mask) * weight).sum(1) / weight.sum(1)


class Heads(nn.Module):
    """Projects to heads [batch, head, time, features of a head], and back."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def split(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        batch, time, _ = x.shape
        q, k, v = self.qkv(x).view(batch, time, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def join(self, heads: torch.Tensor) -> torch.Tensor:
        return self.out(heads.transpose(1, 2).flatten(2))


class Causal(Heads):
    """Attention written out, with a triangular mask kept as a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("triangle", torch.tril(torch.ones(TIME, TIME, dtype=torch.bool)), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.split(x)
        scores = (q @ k.transpose(-2, -1)) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(~self.triangle[: x.shape[1], : x.shape[1]], float("-inf"))
        return self.join(scores.softmax(-1) @ v)


class OfIds(Heads):
    """Token 0 is padding, which no token attends to."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, WIDTH, padding_idx=0)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        q, k, v = self.split(self.table(ids))
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        scores = scores + (ids == 0)[:, None, None, :] * torch.finfo(scores.dtype).min
        return self.join(F.softmax(scores, dim=-1) @ v)[:, 0]


class Fused(Heads):
    """torch's own attention, with the given options."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.options = options

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.join(F.scaled_dot_product_attention(*self.split(x), **self.options))  # type: ignore[arg-type]


class Rotary(Heads):
    """Rotates pairs of features by their position; the angles are computed in forward."""

    def turn(self, heads: torch.Tensor) -> torch.Tensor:
        half = heads.shape[-1] // 2
        angle = torch.outer(torch.arange(heads.shape[-2]), 100.0 ** -(torch.arange(half) / half))
        cos, sin = torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()
        one, other = heads.chunk(2, -1)
        return heads * cos + torch.cat([-other, one], -1) * sin

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.split(x)
        return self.join(F.scaled_dot_product_attention(self.turn(q), self.turn(k), v, is_causal=True))


class Sloped(Heads):
    """Adds a penalty that grows with distance (ALiBi), as a float mask."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        at = torch.arange(x.shape[1], dtype=x.dtype)
        slopes = torch.tensor([0.5, 0.25]).view(HEADS, 1, 1)
        mask = -(at[None, :] - at[:, None]).abs() * slopes
        return self.join(F.scaled_dot_product_attention(*self.split(x), attn_mask=mask))


class Shared(nn.Module):
    """Four heads of queries share two heads of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = self.q(x).unflatten(-1, (4, 2)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (2, 2, 2)).permute(2, 0, 3, 1, 4).unbind(0)
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2)


class Bert(nn.Module):
    """Tokens, kinds of segment, and a mask, by their usual names; the first step's features pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.place, self.kind = nn.Embedding(50, WIDTH), nn.Embedding(TIME, WIDTH), nn.Embedding(2, WIDTH)
        self.norm, self.encoder = nn.LayerNorm(WIDTH), encoder(enable_nested_tensor=False)
        self.pool = nn.Linear(WIDTH, 3)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        places = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)
        kinds = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        found = self.norm(self.word(input_ids) + self.place(places) + self.kind(kinds))
        mask = torch.zeros_like(found[..., 0]).masked_fill(attention_mask == 0, -1e9)
        return {"pooled": self.pool(self.encoder(found, src_key_padding_mask=mask)[:, 0]).tanh()}


class Gpt(nn.Module):
    """The scores of the token after the last one of each row; the head is the table of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.place = nn.Embedding(20, WIDTH), nn.Parameter(torch.randn(1, TIME, WIDTH))
        self.layer = layer(norm_first=True)
        self.head = nn.Linear(WIDTH, 20, bias=False)
        self.head.weight = self.word.weight

    def forward(self, ids: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        found = self.layer(self.word(ids) + self.place, src_mask=mask, is_causal=True)
        last = (length - 1).view(-1, 1, 1).expand(-1, 1, WIDTH)
        return self.head(found.gather(1, last).squeeze(1))


def windows(m: Of, x: torch.Tensor) -> torch.Tensor:
    """Attention within windows of a picture that is rolled, as in Swin. [batch, 4, 4, WIDTH]."""
    batch = x.shape[0]
    cut = torch.roll(x, (-1, -1), (1, 2)).view(batch, 2, 2, 2, 2, WIDTH).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, WIDTH)
    found = m.attention(cut, cut, cut, need_weights=False)[0]
    whole = found.view(batch, 2, 2, 2, 2, WIDTH).permute(0, 1, 3, 2, 4, 5).reshape(batch, 4, 4, WIDTH)
    return torch.roll(whole, (1, 1), (1, 2))


BERT = {
    "input_ids": ("int64", (TIME,)),
    "attention_mask": ("int64", (TIME,)),
    "token_type_ids": ("int64", (TIME,)),
}
BERT_VALUES = {"input_ids": (0, 50), "attention_mask": (0, 2), "token_type_ids": (0, 2)}
THREE = {name: ("float32", (TIME, WIDTH)) for name in ("query", "key", "value")}

CASES = [
    taken(
        "multihead_attention", attention, THREE,
        {"0": ("float32", (TIME, WIDTH)), "1": ("float32", (TIME, TIME))},
    ),
    taken(
        "attention_without_weights", lambda: Of(lambda m, x: m.a(x, x, x, need_weights=False), a=attention()), SEQUENCE,
        {"0": ("float32", (TIME, WIDTH))},
    ),
    taken(
        "attention_with_padding",
        lambda: Of(lambda m, x, keep: m.a(x, x, x, key_padding_mask=padded(keep))[0], a=attention()),
        SEQUENCE | KEEP, (TIME, WIDTH), draw=FLAGS,
    ),
    taken(
        "attention_with_extras", lambda: Of(lambda m, x: m.a(x, x, x)[0], a=attention(add_bias_kv=True,
        add_zero_attn=True)), SEQUENCE, (TIME, WIDTH),
    ),
    taken(
        "attention_batch_second",
        lambda: Of(
            lambda m, x: m.a(x.transpose(0, 1), x.transpose(0, 1), x.transpose(0, 1))[0].transpose(0, 1),
            a=nn.MultiheadAttention(WIDTH, HEADS),
        ), SEQUENCE, (TIME, WIDTH),
    ),
    taken(
        "encoder_layer", lambda: layer(norm_first=True, activation="gelu"), {"src": ("float32", (TIME, WIDTH))},
        (TIME, WIDTH),
    ),
    taken("encoder_nested", lambda: encoder(norm=nn.LayerNorm(WIDTH)), SEQUENCE, (TIME, WIDTH)),
    taken(
        "encoder_with_padding", lambda: Of(masked_encoder, encoder=encoder()), SEQUENCE | KEEP, (WIDTH,), draw=FLAGS
    ),
    taken(
        "transformer", lambda: nn.Transformer(WIDTH, HEADS, 1, 1, 16, batch_first=True),
        {"src": ("float32", (TIME, WIDTH)), "tgt": ("float32", (3, WIDTH))}, (3, WIDTH),
    ),
    taken("fused_causal_attention", lambda: Fused(is_causal=True, scale=0.3), SEQUENCE, (TIME, WIDTH)),
    taken("grouped_query_attention", Shared, SEQUENCE, (TIME, WIDTH)),
    taken("causal_attention", Causal, SEQUENCE, (TIME, WIDTH)),
    taken("attention_of_ids", OfIds, ids(TIME), (WIDTH,), draw={"ids": (0, 11)}),
    taken("rotary_attention", Rotary, SEQUENCE, (TIME, WIDTH)),
    taken("sloped_attention", Sloped, SEQUENCE, (TIME, WIDTH)),
    taken("window_attention", lambda: Of(windows, attention=attention()), x(4, 4, WIDTH), (4, 4, WIDTH)),
    taken("bert", Bert, BERT, {"pooled": ("float32", (3,))}, draw=BERT_VALUES),
    taken(
        "gpt", Gpt, ids(TIME) | {"length": ("int64", ())}, (20,), draw={"ids": (0, 20), "length": (1, TIME + 1)}
    ),
    refused("attention_takes_batch_for_time", lambda: layer(batch_first=False), SEQUENCE, "rows_mixed"),
    refused(
        "attention_over_the_batch", lambda: Of(lambda m, x: m.a(x, x, x)[0], a=attention()), x(WIDTH), "rows_mixed"
    ),
    refused("attention_with_dropout", lambda: Fused(dropout_p=0.1), SEQUENCE, "random"),
]  # fmt: skip
