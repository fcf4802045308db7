"""Long documents out of distribution packages, for training and for measuring: nothing of it ships.

    APT_CONFIG=apt.conf python fetch_pool.py OUT [--minutes 25] [--further FILE ...]

Reads the Debian source packages of packages.txt (`apt-get source --download-only`; deb-src lines
wanted), takes their long text files by category, drops what repeats itself or another document, and
writes OUT/<package>.jsonl.gz: content, category, repository, path, licences, held_out. Packages that
are there already are not read again. Held-out repositories are chosen by the hash of their name.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import subprocess
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

SUFFIXES = {
    "compiled": "c h cc cpp cxx hpp hh rs go java cs swift f f90 ml mli hs d pas pp adb ads m",
    "script": "py pyx js mjs ts pl pm rb php lua el lisp lsp scm tcl sh r jl vim cl t spad",
    "manual": "texi texinfo txi tex ltx dtx rst md txt pod docbook sgml adoc xfpt pamphlet",
}
CATEGORY = {suffix: name for name, of in SUFFIXES.items() for suffix in of.split()}
BYTES = (28_000, 1_000_000)  # of a file; a window of 8192 tokens takes at least the first
REPOSITORY_BYTES = 16_000_000  # of one category from one repository
LINE = 24  # characters from which a line tells documents apart
REPEATED = 0.25  # share of a document in lines that were seen before, in it or in another
HELD_OUT = 0.07  # of the repositories
DATA_NAMES = re.compile(
    r"/(po|locale|i18n|lang|languages|fixtures?|testdata|test-data|corpus|third[_-]?party|vendor|"
    r"node_modules|translations?|dictionar\w*|wordlists?)/|min\.js$|licen[cs]e|copying|copyright",
    re.IGNORECASE,
)


class Seen:
    """Lines of the documents kept so far: a bit for each CRC-32 of a line."""

    def __init__(self) -> None:
        self.bits = np.zeros(2**29, np.uint8)

    def take(self, text: str) -> bool:
        """Whether few of the lines were seen before; if so, they are from now on."""
        lines = [line for line in (one.strip() for one in text.split("\n")) if len(line) >= LINE]
        if not lines:
            return False
        codes = np.array([zlib.crc32(line.encode()) for line in lines], np.int64)
        sizes = np.array([len(line) for line in lines])
        new = np.zeros(len(codes), bool)
        new[np.unique(codes, return_index=True)[1]] = True
        new &= (self.bits[codes >> 3] >> (codes & 7).astype(np.uint8)) & 1 == 0
        if sizes[~new].sum() > REPEATED * sizes.sum():
            return False
        np.bitwise_or.at(self.bits, codes >> 3, np.uint8(1) << (codes & 7).astype(np.uint8))
        return True


def is_prose_or_code(text: str) -> bool:
    """Neither data nor minified: lines of ordinary length, most characters letters or spaces."""
    longest = max(map(len, text.split("\n")))
    letters = sum(map(text.count, " \netaoinsrhld"))
    digits = sum(map(text.count, "0123456789"))
    return longest <= 2000 and letters >= 0.4 * len(text) and digits <= 0.15 * len(text)


def category_of(name: str) -> str | None:
    if DATA_NAMES.search(name):
        return None
    return CATEGORY.get(name.rpartition(".")[2].lower())


def is_held_out(repository: str) -> bool:
    """By the hash of its name; books are never selected from."""
    if repository.startswith("book:"):
        return True
    return int.from_bytes(sha256(repository.encode()).digest()[:4]) < HELD_OUT * 2**32


def repository_of(family: str, path: str) -> str:
    """The side is decided by family, or, for TeX Live, by the CTAN package of the file."""
    if not family.startswith("texlive"):
        return family
    parts = path.split("/")
    for place in ("doc", "source", "tex"):
        if place in parts and len(parts) > parts.index(place) + 3:
            return "ctan:" + parts[parts.index(place) + 2]
    return "ctan:" + parts[-2]


def files_of(archive: Path) -> Iterator[tuple[str, str, str]]:
    """Category, path and text of the long files of a tarball."""
    with tarfile.open(archive, "r|*") as tar:
        for member in tar:
            category = category_of(member.name)
            if category and member.isfile() and BYTES[0] <= member.size <= BYTES[1]:
                stream = tar.extractfile(member)
                data = stream.read() if stream else b""
                try:
                    text = data.decode()
                except UnicodeDecodeError:
                    continue
                if "\0" not in text and is_prose_or_code(text):
                    yield category, member.name, text


def licences_of(archives: list[Path]) -> list[str]:
    """Short names in debian/copyright, most frequent first."""
    for archive in archives:
        if ".debian.tar" in archive.name:
            with tarfile.open(archive, "r|*") as tar:
                for member in tar:
                    if member.name.endswith("debian/copyright") and member.isfile():
                        stream = tar.extractfile(member)
                        text = stream.read().decode(errors="replace") if stream else ""
                        names = re.findall(r"^License: *(\S.*)$", text, re.MULTILINE)
                        return sorted(set(names), key=lambda n: (-names.count(n), n))[:8]
    return []


def documents_of(package: str, family: str, seen: Seen) -> Iterator[dict[str, Any]]:
    """The documents of one source package, in an order that its files' hashes give."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            ["apt-get", "-qq", "source", "--download-only", "--only-source", package],
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        archives = sorted(
            p for p in Path(folder).iterdir() if ".tar" in p.name and p.suffix != ".asc"
        )
        licences = licences_of(archives)
        found: list[tuple[str, str, str]] = []
        for archive in archives:
            try:
                found += files_of(archive)
            except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
                print(f"{package}: {archive.name}: {error}", flush=True)
    found.sort(key=lambda file: sha256(file[1].encode()).digest())
    taken: dict[tuple[str, str], int] = {}
    for category, path, text in found:
        repository = repository_of(family, path)
        key = category, repository
        if taken.get(key, 0) < REPOSITORY_BYTES and seen.take(text):
            taken[key] = taken.get(key, 0) + len(text)
            yield {
                "content": text,
                "category": category,
                "repository": repository,
                "path": path,
                "package": package,
                "licences": licences,
            }


def further_of(file: Path, seen: Seen) -> Iterator[dict[str, Any]]:
    """Documents from elsewhere: JSON lines of content, category, repository, path, licences."""
    with gzip.open(file, "rt", encoding="utf8") as lines:
        for line in lines:
            document = json.loads(line)
            if len(document["content"]) >= BYTES[0] and seen.take(document["content"]):
                yield {**document, "package": file.name}


def write(out: Path, documents: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """All of them in one file, which appears whole; without their text, as told."""
    told = []
    partial = out.with_suffix(".partial")
    with gzip.open(partial, "wt", encoding="utf8", compresslevel=1) as lines:
        for document in documents:
            lines.write(json.dumps(document, ensure_ascii=False) + "\n")
            told.append({**document, "content": len(document["content"])})
    partial.rename(out)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--further", type=Path, nargs="*", default=[])
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    seen, stop = Seen(), time.monotonic() + 60 * given.minutes
    for done in sorted(given.out.glob("*.jsonl.gz")):
        with gzip.open(done, "rt", encoding="utf8") as lines:
            for line in lines:
                seen.take(json.loads(line)["content"])
    for file in given.further:
        if not (out := given.out / f"further-{file.name}").exists():
            write(out, further_of(file, seen))
    listed = (Path(__file__).parent / "packages.txt").read_text().splitlines()
    families = [line.split() for line in listed if line and not line.startswith("#")]
    # Held-out families first, then TeX Live, which has most of the manuals, then by hash, so that a
    # pool that ends early is as diverse as can be.
    families.sort(
        key=lambda f: (
            not is_held_out(f[0]),
            f[0] != "texlive-base",
            sha256(f[0].encode()).digest(),
        )
    )
    total: dict[str, int] = {}
    for package, family in [(package, f[0]) for f in families for package in f]:
        out = given.out / f"{package}.jsonl.gz"
        if out.exists():
            continue
        if time.monotonic() > stop:
            print("out of time", flush=True)
            break
        try:
            for document in write(out, documents_of(package, family, seen)):
                held_out = is_held_out(document["repository"])
                key = ("held-out " if held_out else "") + document["category"]
                total[key] = total.get(key, 0) + document["content"]
        except subprocess.CalledProcessError:
            print(f"{package}: not to be had", flush=True)
        print(
            f"{package}: { ({k: f'{v / 1e6:.0f} MB' for k, v in sorted(total.items())}) }",
            flush=True,
        )


if __name__ == "__main__":
    main()
