"""How busy a whole run keeps GPUs: python tests/bench/feeding.py [CORES ...] [--gpus N ...]

JSONL made of the sample documents, each rotated so that no two are equal, to labelled Parquet, scored
but not selected, on so many GPUs with so many cores each, with a checkpoint of the 8B shape whose
weights are drawn. A run on N GPUs reads N times as many files as one on one GPU, so that all take
about as long. Busy is the share of time in which a kernel computes as nvidia-smi samples it, from the
first labelled file to the last; the rate is that of the same time. Rows of the same windows must be
equal, bit for bit, in all runs.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import yaml
from safetensors.torch import save_file

from tests.bench.windows import write_file

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
    names = ["data_id", "ds", "variance", "ds_heads", "variance_heads"]
    return pq.read_table(output / "labelled", columns=names).sort_by("data_id")


def measure(folder: Path, cores: int, gpus: int, files: int) -> pa.Table:
    """Run on so many GPUs with so many cores and files each; prints the figures, gives the rows."""
    output, source = folder / "out", folder / f"in-{gpus}"
    source.mkdir(exist_ok=True)
    for part in range(files * gpus):
        name = f"{part}.jsonl"
        if not (source / name).exists():
            os.link(folder / "in" / name, source / name)
    config = {
        "sources": [{"category": "all", "path": str(source)}],
        "output": str(output),
        "scorer": {"model": f"{folder}/model"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    given = cores * gpus
    command = ["taskset", "-c", f"0-{given - 1}", sys.executable, "-c", RUN, str(given)]
    visible = ",".join(map(str, range(gpus)))
    query = ["nvidia-smi", "-i", visible, "--query-gpu=index,utilization.gpu"]
    query += ["--format=csv,noheader,nounits", "-lms", "200"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": visible}
    began = time.time()
    with (folder / "samples").open("w") as sampled, (folder / "log").open("w") as log:
        sampler = subprocess.Popen(query, stdout=sampled)
        ran = subprocess.run(
            [*command, folder / "config.yaml"], stdout=log, stderr=log, env=environment
        )
        sampler.terminate()
    ended = time.time()
    print((folder / "log").read_text())
    if ran.returncode:
        sys.exit(f"the run ended with status {ran.returncode}")
    written = sorted(path.stat().st_mtime for path in output.rglob("labelled/*/*.parquet"))
    summary = json.loads((output / "_longattn/summary.json").read_text())
    lines = (folder / "samples").read_text().splitlines()
    samples = [tuple(map(int, line.split(","))) for line in lines if line.count(",") == 1]
    at = [(t - began) / (ended - began) * len(samples) for t in (written[0], written[-1])]
    middle = samples[int(at[0]) : int(at[1])]
    busy = [[share for card, share in middle if card == of] for of in range(gpus)]
    all_windows = summary["categories"]["all"]["windows"]
    windows = all_windows * (1 - 1 / len(written))
    seconds = written[-1] - written[0]
    print(
        f"{given} cores, {gpus} GPUs: {windows:,.0f} of {all_windows:,} windows in {seconds:.1f} s, "
        f"{1000 * seconds / windows:.3f} ms a window; GPU busy "
        f"{', '.join(f'{sum(of) / max(1, len(of)):.1f}' for of in busy)} % of {len(middle)} samples; "
        f"first labelled file {written[0] - began:.0f} s after the command, which took "
        f"{ended - began:.0f} s; {json.dumps(summary['stages'])}",
        flush=True,
    )
    found = rows(output)
    shutil.rmtree(output)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cores", nargs="*", type=int, default=[2, 4, 8], help="for each GPU")
    parser.add_argument("--gpus", nargs="+", type=int, default=[1])
    parser.add_argument("--tokenizer", help="a tokenizer.json; the built-in scorer's by default")
    parser.add_argument("--files", type=int, default=24, help="of 42 MB, for each GPU")
    parser.add_argument("--folder", help="where all is written, and the input stays")
    arguments = parser.parse_args()
    os.environ["RAY_AUTH_MODE"] = "disabled"
    with tempfile.TemporaryDirectory(prefix="la-") as temporary:
        folder = Path(arguments.folder or temporary)
        if not (folder / "model").exists():
            (folder / "in").mkdir(parents=True)
            write_checkpoint(folder / "model", arguments.tokenizer)
        with ProcessPoolExecutor() as pool:
            write = partial(write_file, folder / "in", DOCUMENT_BYTES)
            list(pool.map(write, range(arguments.files * max(arguments.gpus))))
        found = [
            measure(folder, cores, gpus, arguments.files)
            for gpus in arguments.gpus
            for cores in arguments.cores
        ]
    most = max(found, key=len)
    for table in found:
        if not most.filter(pc.is_in(most["data_id"], table["data_id"])).equals(table):
            sys.exit("the runs do not give the same rows")
    print(
        f"rows of the same windows are equal, bit for bit: {', '.join(map(str, map(len, found)))}"
    )


if __name__ == "__main__":
    main()
