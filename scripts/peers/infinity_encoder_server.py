"""infinity with the encoder: the same weights as a BERT, and a tokenizer that knows the word number N as "wN"."""

import os
import sys
import tempfile
from pathlib import Path

import torch
from encoder import HEADS, LAYERS, LONGEST, VOCABULARY, WIDTH, Encoder, build
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Normalize, Pooling, Transformer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

PAD = "[PAD]"


def bert(encoder: Encoder) -> BertModel:
    """The encoder's layers as a BERT of the transformers library."""
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH, max_position_embeddings=LONGEST, type_vocab_size=1, layer_norm_eps=1e-5,
        hidden_act="gelu", pad_token_id=0,
    )  # fmt: skip
    made = BertModel(config, add_pooling_layer=False).eval()
    own = encoder.state_dict()
    named = {
        "embeddings.word_embeddings.weight": own["words.weight"],
        "embeddings.position_embeddings.weight": 0.1 * own["places.weight"],
        "embeddings.token_type_embeddings.weight": torch.zeros(1, WIDTH),
        "embeddings.LayerNorm.weight": own["first.weight"],
        "embeddings.LayerNorm.bias": own["first.bias"],
    }
    for i in range(LAYERS):
        there, here = f"encoder.layer.{i}", f"layers.{i}"
        for kind in ("weight", "bias"):
            parts = own[f"{here}.joint.{kind}"].chunk(3)
            for part, name in zip(parts, ("query", "key", "value"), strict=True):
                named[f"{there}.attention.self.{name}.{kind}"] = part
            named[f"{there}.attention.output.dense.{kind}"] = own[f"{here}.mix.{kind}"]
            named[f"{there}.attention.output.LayerNorm.{kind}"] = own[f"{here}.after_mix.{kind}"]
            named[f"{there}.intermediate.dense.{kind}"] = own[f"{here}.widen.{kind}"]
            named[f"{there}.output.dense.{kind}"] = own[f"{here}.narrow.{kind}"]
            named[f"{there}.output.LayerNorm.{kind}"] = own[f"{here}.after_narrow.{kind}"]
    missing, strange = made.load_state_dict(named, strict=False)
    assert not strange, strange
    assert all("position_ids" in name or "token_type_ids" in name for name in missing), missing
    return made


def write(folder: Path) -> None:
    """The folder holds the model as infinity reads it."""
    vocabulary = {PAD: 0, **{f"w{i}": i for i in range(1, VOCABULARY)}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token=PAD, unk_token=PAD, model_max_length=LONGEST)
    plain = folder / "plain"
    bert(build()).save_pretrained(plain)
    tokenizer.save_pretrained(plain)
    body = Transformer(str(plain), max_seq_length=LONGEST)
    SentenceTransformer(modules=[body, Pooling(WIDTH, "mean"), Normalize()], device="cpu").save(str(folder / "model"))


if __name__ == "__main__":
    port, batch_max = sys.argv[2:4]
    home = Path(tempfile.mkdtemp(dir=os.environ["HOME"]))
    write(home)
    os.environ["DO_NOT_TRACK"] = "1"
    command = [
        str(Path(sys.executable).with_name("infinity_emb")), "v2", "--model-id", str(home / "model"),
        "--served-model-name", "encoder", "--port", port, "--host", "127.0.0.1", "--engine", "torch", "--device", "cpu",
        "--dtype", "float32", "--batch-size", batch_max, "--no-bettertransformer", "--no-model-warmup",
        "--log-level", "error",
    ]  # fmt: skip
    os.execv(command[0], command)
