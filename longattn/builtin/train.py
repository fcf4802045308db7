"""Train the checkpoint that ships with the package: tokenizer, then a layer-0 scorer.

    python -m longattn.builtin.train --corpus book.jsonl.zst --corpus code.jsonl.zst --out checkpoint

Scoring reads nothing but layer 0's queries and keys. An ordinary Llama of this size, trained as long,
spreads them almost evenly over the past (heads' DS 0.26 to 0.37; uniform is 0.40): a copy needs two
layers, one to shift and one to match. Here the value under the key of token i is that of token
i + 1, so one layer suffices: a query that finds its own token, or a kindred one, far back reads
there what came next. Heads so learn to find earlier uses of a token at any distance, which is the
dependency that the score measures. All else is the transformers library's own Llama, so q and k
are computed in training exactly as in scoring. MODEL_CARD.md compares the variants tried.

Costs about 0.1 GFLOP a token at 32768-token sequences: the shipped run took 19 s on one NVIDIA
H200 (2.8 Mtok/s). It needs a GPU; on a CPU keep to a short context and few steps.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import fsspec
import numpy as np
import torch
import torch.nn.functional as F
import typer
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AttentionInterface, LlamaConfig, LlamaModel, PreTrainedTokenizerFast

# Llama 3's split: no lookbehind, so documents can be cut at known-safe places without changing ids.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a training run is, besides its documents."""

    vocab_size: int = 8192
    hidden_size: int = 256
    intermediate_size: int = 512
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    rope_theta: float = 500_000.0
    layers: int = 1
    """Layers trained; layer 0 alone is shipped."""
    next_value: bool = True
    """Layer 0 reads the value after the key it matched; False trains an ordinary Llama."""
    context: int = 32768
    batch: int = 2
    steps: int = 800
    learning_rate: float = 3e-3
    seed: int = 0


def read_documents(paths: list[Path]) -> Iterator[str]:
    """Texts of the `content` column of JSONL, JSONL.gz and JSONL.zst files, in order."""
    for path in paths:
        opened = fsspec.open(str(path), "rt", encoding="utf-8", newline="\n", compression="infer")
        with opened as lines:
            for line in lines:
                yield json.loads(line)["content"]


def held_out(text: str, share: float) -> bool:
    """Whether a document is kept for evaluation: by its SHA-256, so the same one in every run."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE with Llama 3's split, without normalizer, special tokens or BOS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # A whole document as one string makes pre-tokenization hold all its offsets: feed pieces.
    pieces = (t[i : i + 65536] for t in texts for i in range(0, len(t), 65536))
    tokenizer.train_from_iterator(pieces, trainer)
    return tokenizer


def next_value_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Causal attention over (batch, heads, length, head_dim) whose layer 0 reads the next value.

    There query n sees the keys of 0 .. n - 1, each with the value of the token after it, the last
    of which is n itself: nothing ahead of n is read. Query 0 sees none and gives zeros. Returns
    (batch, length, heads, head_dim), as the transformers library asks.
    """
    shift = module.layer_idx == 0
    if shift:
        query, key, value = query[:, :, 1:], key[:, :, :-1], value[:, :, 1:]
    out = F.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scaling, enable_gqa=True
    )
    return (F.pad(out, (0, 0, 1, 0)) if shift else out).transpose(1, 2), None


AttentionInterface.register("next_value", next_value_attention)


def build(recipe: Recipe) -> LlamaModel:
    """A randomly initialised Llama of the recipe, in float32 on the CPU."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=recipe.vocab_size,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.head_dim,
        max_position_embeddings=recipe.context,
        rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=True,
        use_cache=False,
    )
    model = LlamaModel(config)
    model.set_attn_implementation("next_value" if recipe.next_value else "sdpa")
    return model


def train(recipe: Recipe, documents: list[NDArray[np.uint16]], device: str) -> LlamaModel:
    """Train next-token prediction on crops of `context` tokens, each from within one document.

    Documents not longer than the context are left out: a crop must be able to look all the way
    back. Documents are drawn in proportion to their length. Raises ValueError if none is left.
    """
    long = [d for d in documents if len(d) > recipe.context]
    if not long:
        raise ValueError(f"no document has more than context={recipe.context} tokens")
    room = np.array([len(d) - recipe.context for d in long])
    rng = np.random.default_rng(recipe.seed)
    model: LlamaModel = build(recipe).to(device)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(model.parameters(), recipe.learning_rate, (0.9, 0.95), fused=True)
    warmup = max(1, recipe.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / recipe.steps)),
    )
    for step in range(recipe.steps):
        picks = rng.choice(len(long), recipe.batch, p=room / room.sum())
        starts = [int(rng.integers(room[i])) for i in picks]
        crops = [long[i][s : s + recipe.context + 1] for i, s in zip(picks, starts, strict=True)]
        ids = torch.from_numpy(np.stack(crops).astype(np.int64)).to(device)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            hidden = model(input_ids=ids[:, :-1]).last_hidden_state
            logits = F.linear(hidden, model.embed_tokens.weight)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 100 == 0 or step == recipe.steps - 1:
            print(f"step {step}: loss {loss.item():.3f} nats a token", flush=True)
    return model


def save(model: LlamaModel, out: Path) -> None:
    """Write layer 0 of the model, with embeddings and final norm, as a one-layer bf16 LlamaModel."""
    model.layers = model.layers[:1]
    model.config.num_hidden_layers = 1
    model.to("cpu", torch.bfloat16).save_pretrained(out)  # type: ignore[arg-type]


def main(
    corpus: Annotated[list[Path], typer.Option(help="JSONL, .gz or .zst, column `content`.")],
    out: Annotated[Path, typer.Option(help="Folder to write the checkpoint to.")],
    held_out_share: Annotated[float, typer.Option(help="Documents kept for evaluation.")] = 0.2,
    steps: int = Recipe.steps,
    context: int = Recipe.context,
    seed: int = Recipe.seed,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Train the built-in tokenizer and scorer, and write them as a Hugging Face checkpoint."""
    recipe = Recipe(steps=steps, context=context, seed=seed)
    texts = [t for t in read_documents(corpus) if not held_out(t, held_out_share)]
    tokenizer = train_tokenizer(texts, recipe.vocab_size)
    documents = [np.array(tokenizer.encode(text).ids, dtype=np.uint16) for text in texts]
    save(train(recipe, documents, device), out)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(out)


if __name__ == "__main__":
    typer.run(main)
