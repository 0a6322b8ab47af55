"""What a file is, by its first bytes."""

from __future__ import annotations

import zipfile
from pathlib import Path

HDF5 = b"\x89HDF\r\n\x1a\n"
ZIP = b"PK\x03\x04"

READ = (
    "HDF5 files of D4RL, robomimic and d3rlpy, npz files of OGBench, of D4RL's arrays or as docs/data.md describes "
    "them, and folders of Minari, LeRobot and RLDS (TFDS)"
)
"""What is read, in words."""

_HEAD = 4_096
_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"\x1f\x8b", "compressed with gzip: unpack it (gunzip, or tar -xzf) and give what was in it"),
    (b"BZh", "compressed with bzip2: unpack it and give what was in it"),
    (b"\xfd7zXZ\x00", "compressed with xz: unpack it and give what was in it"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it and give what was in it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it and give what was in it"),
    (b"Rar!", "a RAR archive: unpack it and give what was in it"),
    (b"PAR1", "a Parquet table: of LeRobot's and Minari's data give the folder that holds meta/ or data/metadata.json"),
    (b"ARROW1", "an Arrow table: of Minari's data give the folder that holds data/metadata.json"),
    (b"\x93NUMPY", "one NumPy array (npy): several are needed, in an npz file"),
    (b"version https://git-lfs", "a pointer of Git LFS in place of the data: fetch them with git lfs pull"),
    (b"%PDF", "a PDF document"),
    (b"\x7fELF", "a program"),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (b"SQLite format 3", "an SQLite database"),
)


def is_hdf5(path: Path) -> bool:
    """True if a file begins as HDF5, which may follow a block of the user's."""
    with path.open("rb") as file:
        place, size = 0, path.stat().st_size
        while place < size:
            file.seek(place)
            if file.read(len(HDF5)) == HDF5:
                return True
            place = 512 if not place else 2 * place
    return False


def is_zip(path: Path) -> bool:
    """True if a path is that of a file which begins as a zip archive."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(ZIP)) == ZIP


def describe(path: Path) -> str:
    """What a file is, in words that follow "is".

    Args:
        path: of a file that can be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        return "empty: fetch it again"
    if len(head) < len(HDF5) and (HDF5.startswith(head) or ZIP.startswith(head)):
        return f"cut off after {len(head)} bytes: fetch it again"
    for signature, words in _SIGNATURES:
        if head.startswith(signature):
            return words
    if is_hdf5(path):
        return "an HDF5 file"
    if head[4:8] == b"ftyp":
        return "an MP4 video"
    if head[:4] == b"RIFF":
        return "a RIFF file (AVI, WAV or WebP)"
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it (tar -xf) and give what was in it"
    if head.startswith(ZIP):
        return _zip(path)
    if head[0] == 0x80 and len(head) > 2 and 2 <= head[1] <= 5:
        return "a Python pickle, which is never loaded, since it can run any program: save its arrays with numpy.savez"
    if not head.strip(b"\0"):
        return "zeros, at least at its start, as a broken download leaves them"
    return _text(head, path)


def _zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError):
        return "a zip archive (npz files are some) that is cut off or damaged: fetch it again"
    if any(name.endswith("data.pkl") for name in names):
        return "a file of torch.save, which holds a pickle and is never loaded: save its arrays with numpy.savez"
    if names and all(name.endswith(".npy") for name in names):
        return "an npz file"
    return "a zip archive: unpack it and give what was in it"


def _text(head: bytes, path: Path) -> str:
    try:
        # The last letter may be cut.
        text = head.decode("utf-8", "strict" if len(head) < _HEAD else "ignore").lstrip("\ufeff \t\r\n")
    except UnicodeDecodeError:
        return "of a format that is not known here"
    if "\0" in text:
        return "of a format that is not known here"
    if text[:15].lower().startswith(("<!doctype html", "<html")):
        return "a web page in place of the data, as hosts and proxies send: open the address in a browser to see why"
    if text[:1] in ("{", "["):
        return "JSON text" if path.suffix != ".jsonl" else "JSON text, one object a line"
    lines = text.splitlines()[:5]
    if len(lines) > 1 and lines[0].count(",") and len({line.count(",") for line in lines[:-1]}) == 1:
        return "a table in text (CSV)"
    return "text"
