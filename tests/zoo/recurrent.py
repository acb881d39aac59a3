"""Networks that process a sequence [batch, time, features] step by step."""

from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.zoo.cases import Of, ids, refused, taken, x

TIME, WIDTH, HIDDEN = 5, 4, 3
SEQUENCE = x(TIME, WIDTH)


def net(kind: type[nn.Module], *, batch_first: bool = True, **options: Any) -> nn.Module:
    return kind(WIDTH, HIDDEN, batch_first=batch_first, **options)


def all_steps(m: Of, x: torch.Tensor) -> Any:
    return m.net(x)[0]


def last_state(m: Of, x: torch.Tensor) -> Any:
    return m.net(x)[1][-1]


class Loop(nn.Module):
    """A cell in a loop over the steps."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(WIDTH, HIDDEN)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = c = x.new_zeros(x.shape[0], HIDDEN)
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], (h, c))
        return h


class Packed(nn.Module):
    """Packs the valid steps of each row: which steps are computed together depends on all rows."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net(nn.GRU)

    def forward(self, x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        return self.net(pack_padded_sequence(x, n, batch_first=True, enforce_sorted=False))[1][-1]


class PackedToTheLongest(Packed):
    """Its outputs are as long as the longest row of the batch."""

    def forward(self, x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        packed = pack_padded_sequence(x, n, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.net(packed)[0], batch_first=True)[0]


class Remembers(nn.Module):
    """Continues where the last call ended."""

    def __init__(self, buffer: bool) -> None:
        super().__init__()
        self.net = net(nn.GRU)
        if buffer:
            self.register_buffer("h", torch.zeros(1, 1, HIDDEN))
        else:
            self.h = torch.zeros(1, 1, HIDDEN)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found, h = self.net(x, self.h.expand(-1, x.shape[0], -1).contiguous())
        self.h = h[:, :1].detach()
        return found


class Seq2Seq(nn.Module):
    """Greedy decoding: each output is the next input."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.encoder, self.cell = nn.Embedding(9, WIDTH), net(nn.GRU), nn.GRUCell(WIDTH, HIDDEN)
        self.head = nn.Linear(HIDDEN, 9)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        state = self.encoder(self.table(ids))[1][0]
        token = torch.zeros_like(ids[:, 0])
        written = []
        for _ in range(2):
            state = self.cell(self.table(token), state)
            token = self.head(state).argmax(-1)
            written.append(token)
        return torch.stack(written, 1)


LENGTHS = SEQUENCE | {"n": ("int64", ())}

CASES = [
    taken("lstm", lambda: Of(all_steps, net=net(nn.LSTM)), SEQUENCE, (TIME, HIDDEN)),
    taken("lstm_with_dropout", lambda: Of(all_steps, net=net(nn.LSTM, num_layers=2, dropout=0.5)), SEQUENCE,
          (TIME, HIDDEN)),
    taken(
        "lstm_states", lambda: Of(lambda m, x: [s.transpose(0, 1) for s in m.net(x)[1]], net=net(nn.LSTM)), SEQUENCE,
        {"0": ("float32", (1, HIDDEN)), "1": ("float32", (1, HIDDEN))},
    ),
    taken("gru_both_ways", lambda: Of(all_steps, net=net(nn.GRU, bidirectional=True)), SEQUENCE,
          (TIME, 2 * HIDDEN)),
    taken("gru_last_state", lambda: Of(last_state, net=net(nn.GRU)), SEQUENCE, (HIDDEN,)),
    taken("rnn", lambda: Of(last_state, net=net(nn.RNN, nonlinearity="relu", bias=False)), SEQUENCE, (HIDDEN,)),
    taken(
        "gru_batch_second",
        lambda: Of(lambda m, x: m.net(x.transpose(0, 1))[0].transpose(0, 1), net=net(nn.GRU, batch_first=False)),
        SEQUENCE, (TIME, HIDDEN),
    ),
    taken("loop_over_a_cell", Loop, SEQUENCE, (HIDDEN,)),
    taken(
        "state_in_and_out", lambda: nn.GRUCell(WIDTH, HIDDEN),
        {"input": ("float32", (WIDTH,)), "hx": ("float32", (HIDDEN,))}, (HIDDEN,),
    ),
    taken("greedy_decoder", Seq2Seq, ids(TIME), {"output": ("int64", (2,))}, draw={"ids": (0, 9)}),
    refused("lstm_as_it_is", lambda: net(nn.LSTM), SEQUENCE, "rows_changed"),
    refused("gru_takes_batch_for_time", lambda: Of(all_steps, net=net(nn.GRU, batch_first=False)), SEQUENCE,
            "rows_mixed"),
    refused("packed", Packed, LENGTHS, "not_exportable"),
    refused("packed_to_the_longest", PackedToTheLongest, LENGTHS, "rows_mixed"),
    refused("remembers_in_a_buffer", lambda: Remembers(True), SEQUENCE, "state_changed"),
    refused("remembers_in_an_attribute", lambda: Remembers(False), SEQUENCE, "state_changed"),
]  # fmt: skip
