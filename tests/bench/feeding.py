"""How busy a whole run keeps GPUs: python tests/bench/feeding.py [CORES ...] [--gpus N ...]

JSONL made of the sample documents, each rotated so that no two are equal, to labelled Parquet, scored
but not selected, on so many cores and GPUs, with a checkpoint of the 8B shape whose weights are drawn.
Busy is the share of time in which a kernel computes as nvidia-smi samples it, from the first labelled
file to the last; the rate is that of the same time. All runs must give the same rows, bit for bit.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from safetensors.torch import save_file

from tests.bench.windows import write_corpus

HEADS, KV_HEADS, DIM, HIDDEN, VOCABULARY = 32, 8, 128, 4096, 128256
DOCUMENT_BYTES = 1 << 20
# Ray counts the machine's cores, not those that the process may use.
RUN = """
import logging, sys, ray, longattn as la
logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
ray.init(num_cpus=int(sys.argv[1]), include_dashboard=False, logging_level="ERROR")
la.run(la.Config.from_yaml(sys.argv[2]), select_after=False)
"""


def write_checkpoint(folder: Path, tokenizer: str | None) -> None:
    """What scoring reads of a model, drawn: scores of deviation 2.6, as trained ones have."""
    folder.mkdir()
    torch.manual_seed(0)
    deviation = 1.6 / HIDDEN**0.5
    draw = {
        "embed_tokens": (VOCABULARY, HIDDEN),
        "layers.0.self_attn.q_proj": (HEADS * DIM, HIDDEN),
        "layers.0.self_attn.k_proj": (KV_HEADS * DIM, HIDDEN),
    }
    tensors = {
        f"model.{name}.weight": (torch.randn(shape) * deviation).bfloat16()
        for name, shape in draw.items()
    }
    tensors["model.layers.0.input_layernorm.weight"] = torch.ones(HIDDEN, dtype=torch.bfloat16)
    save_file(tensors, folder / "model.safetensors")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": DIM,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": 1,
        "vocab_size": VOCABULARY,
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    builtin = Path(__file__).parents[2] / "longattn" / "builtin" / "tokenizer.json"
    (folder / "tokenizer.json").write_bytes(Path(tokenizer or builtin).read_bytes())


def rows(output: Path) -> pa.Table:
    names = ["data_id", "ds", "variance"]
    return pq.read_table(output / "labelled", columns=names).sort_by("data_id")


def measure(folder: Path, cores: int, gpus: int) -> pa.Table:
    output = folder / f"out-{cores}-{gpus}"
    config = {
        "sources": [{"category": "all", "path": f"{folder}/in"}],
        "output": str(output),
        "scorer": {"model": f"{folder}/model"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    command = ["taskset", "-c", f"0-{cores - 1}", sys.executable, "-c", RUN, str(cores)]
    sampled = folder / "samples"
    visible = ",".join(map(str, range(gpus)))
    query = ["nvidia-smi", "-i", visible, "--query-gpu=utilization.gpu"]
    query += ["--format=csv,noheader,nounits"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": visible}
    began = time.time()
    with sampled.open("w") as file:
        sampler = subprocess.Popen([*query, "-lms", "200"], stdout=file)
        log = subprocess.run(
            [*command, folder / "config.yaml"], capture_output=True, text=True, env=environment
        )
        sampler.terminate()
    ended = time.time()
    if log.returncode:
        sys.exit(log.stdout + log.stderr)
    print(log.stderr)
    written = sorted(path.stat().st_mtime for path in output.rglob("labelled/*/*.parquet"))
    summary = json.loads((output / "_longattn/summary.json").read_text())
    samples = [int(line) for line in sampled.read_text().split()]
    at = [(t - began) / (ended - began) * len(samples) for t in (written[0], written[-1])]
    middle = samples[int(at[0]) : int(at[1])]
    windows = summary["categories"]["all"]["windows"] * (1 - 1 / len(written))
    seconds = written[-1] - written[0]
    print(
        f"{cores} cores, {gpus} GPUs: {windows:,.0f} windows in {seconds:.1f} s, {1000 * seconds / windows:.2f} ms a "
        f"window; GPU busy {sum(middle) / len(middle):.1f} % of {len(middle)} samples "
        f"(whole command {ended - began:.0f} s); {json.dumps(summary['stages'])}",
        flush=True,
    )
    return rows(output)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cores", nargs="*", type=int, default=[2, 4, 8])
    parser.add_argument("--gpus", nargs="+", type=int, default=[1])
    parser.add_argument("--tokenizer")
    parser.add_argument("--files", type=int, default=24)
    arguments = parser.parse_args()
    os.environ["RAY_AUTH_MODE"] = "disabled"
    with tempfile.TemporaryDirectory(prefix="la-") as temporary:
        folder = Path(temporary)
        write_checkpoint(folder / "model", arguments.tokenizer)
        (folder / "in").mkdir()
        write_corpus(folder / "in", DOCUMENT_BYTES, arguments.files)
        found = [
            measure(folder, cores, gpus) for cores in arguments.cores for gpus in arguments.gpus
        ]
    if not all(table.equals(found[0]) for table in found):
        sys.exit("the runs do not give the same rows")


if __name__ == "__main__":
    main()
