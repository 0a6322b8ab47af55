import gzip
import io
import json
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from aaren_rl.envs.readers.detect import READERS, format_of
from aaren_rl.envs.readers.parsed import recording
from aaren_rl.errors import DataError, InvalidInput

RECORDED = Path(__file__).parent / "recorded"


def npz(path, *keys):
    with path.open("wb") as file:
        np.savez(file, **dict.fromkeys(keys, np.zeros(3)))
    return path


def hdf5(path, *keys):
    with h5py.File(path, "w") as file:
        for key in keys:
            file[key] = np.zeros(3)
    return path


def folder(path, file):
    (path / file).parent.mkdir(parents=True)
    (path / file).write_text("{}")
    return path


def test_every_format_is_found_by_its_content(tmp_path):
    found = {
        "d4rl": hdf5(tmp_path / "a", "observations", "actions", "rewards", "terminals"),
        "robomimic": hdf5(tmp_path / "b.bin", "data/demo_0/actions"),
        "d3rlpy": RECORDED / "d3rlpy" / "d3rlpy_vectors.h5",
        "ogbench": npz(tmp_path / "c.npz", "observations", "actions", "terminals"),
        "npz": npz(tmp_path / "d.zip", "observations", "actions", "rewards", "terminated", "truncated", "offsets"),
        "rlds": RECORDED / "rlds" / "1.0.0",
        "lerobot": RECORDED / "lerobot",
        "minari": folder(tmp_path / "e", "data/metadata.json"),
    }
    assert {name: format_of(path) for name, path in found.items()} == {name: name for name in found}
    assert set(found) == {*READERS, "minari"}


def test_first_version_of_d3rlpy_is_not_taken_for_d4rl(tmp_path):
    keys = ("observations", "actions", "rewards", "terminals", "episode_terminals", "discrete_action")
    assert format_of(hdf5(tmp_path / "a.h5", *keys)) == "d3rlpy"


def test_folder_above_and_file_within_rlds():
    assert format_of(RECORDED / "rlds") == "rlds"
    assert format_of(RECORDED / "rlds" / "1.0.0" / "tiny-train.tfrecord-00000-of-00001") == "rlds"


D4RL = ("observations", "actions", "rewards", "terminals")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (D4RL, "d4rl"),
        ((*D4RL, "timeouts"), "d4rl"),
        ((*D4RL, "timeouts", "masks"), "d4rl"),
        ((*D4RL, "next_observations"), "d4rl"),
        ((*D4RL, "masks"), "ogbench"),
        ((*D4RL, "valids"), "ogbench"),
        (("observations", "actions", "terminals", "next_observations"), "ogbench"),
    ],
)
def test_npz_of_d4rl_and_of_ogbench_are_told_apart(tmp_path, keys, expected):
    assert format_of(npz(tmp_path / "a.npz", *keys)) == expected


def image(form):
    content = io.BytesIO()
    Image.new("RGB", (3, 3)).save(content, form)
    return content.getvalue()


def archive(**files):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as opened:
        for name, inside in files.items():
            opened.writestr(name.replace("_", "."), inside)
    return content.getvalue()


def tar():
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as opened:
        opened.addfile(tarfile.TarInfo("a"))
    return content.getvalue()


def npy():
    content = io.BytesIO()
    np.save(content, np.zeros(3))
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (image("PNG"), "is a PNG image"),
        (image("JPEG"), "is a JPEG image"),
        (gzip.compress(b"a"), "is compressed with gzip: unpack it"),
        (archive(a_txt=b"a"), "is a zip archive: unpack it"),
        (archive(data_pkl=b"a", version=b"3"), r"is a file of torch\.save, which holds a pickle and is never loaded"),
        (archive(a_txt=b"a" * 100)[:80], "is a zip archive .* that is cut off or damaged: fetch it again"),
        (pickle.dumps({"observations": [1]}), "is a Python pickle, which is never loaded"),
        (b"PAR1" + bytes(8), "is a Parquet table: .* give the folder"),
        (tar(), "is a tar archive: unpack it"),
        (npy(), "is one NumPy array"),
        (json.dumps({"a": 1}).encode(), "is JSON text"),
        (b"step,reward\n1,2\n2,3\n", r"is a table in text \(CSV\)"),
        (b"\0\0\0\x20ftypisom" + bytes(8), "is an MP4 video"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            "is a pointer of Git LFS .* git lfs pull",
        ),
        (b"\n<!DOCTYPE html>\n<html><body>Login</body></html>", "is a web page in place of the data"),
        (bytes(5_000), "is zeros, at least at its start"),
        (b"", "is empty: fetch it again"),
        (b"\x89HD", "is cut off after 3 bytes: fetch it again"),
        ("Grüße".encode(), "is text"),
        (np.random.default_rng(0).bytes(6_000), "is of a format that is not known here"),
        (b"\x80\x03", "is of a format that is not known here"),
        (b"\x80", "is of a format that is not known here"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_file_of_another_kind_is_named_as_what_it_is(tmp_path, content, message):
    (tmp_path / "data.hdf5").write_bytes(content)
    with pytest.raises(DataError, match=rf"data\.hdf5 {message}") as error:
        format_of(tmp_path / "data.hdf5")
    assert "data are read from HDF5 files of D4RL" in str(error.value)
    assert "delete" not in str(error.value)
    assert "\n" not in str(error.value)


def test_hdf5_and_npz_of_other_keys_are_shown_with_them(tmp_path):
    with pytest.raises(DataError, match=r"an HDF5 file with the keys \['a', 'b'\]; expected D4RL's"):
        format_of(hdf5(tmp_path / "a.h5", "a", "b"))
    with pytest.raises(DataError, match=r"npz file with the keys \['x0', .*\] and 2 more; expected OGBench's"):
        format_of(npz(tmp_path / "a.npz", *(f"x{number}" for number in range(10))))
    gymnasium = npz(tmp_path / "b.npz", "observations", "actions", "rewards", "terminations", "truncations")
    with pytest.raises(DataError, match=r"OGBench's .*D4RL's .*this project's .*'terminated', 'truncated'"):
        format_of(gymnasium)
    with pytest.raises(DataError, match="is the data of a Minari dataset; give its folder"):
        format_of(hdf5(tmp_path / "main_data.hdf5", "episode_0/rewards"))


@pytest.mark.parametrize("name", ["rlds/1.0.0/tiny-train.tfrecord-00000-of-00001", "d3rlpy/d3rlpy_vectors.h5"])
def test_cut_file_of_a_known_format_is_named_as_cut(tmp_path, name):
    source = RECORDED / name
    copy = Path(shutil.copytree(source.parent, tmp_path / "cut")) / source.name
    copy.write_bytes(source.read_bytes()[:-600])
    with pytest.raises(DataError, match=rf"{source.name} .*cut off.*fetch it again"):
        READERS[format_of(copy)](copy, lambda line: None)


def test_cut_npz_is_named_as_cut(tmp_path):
    path = npz(tmp_path / "a.npz", "observations", "actions", "terminals")
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"a\.npz is a zip archive \(npz files are some\) that is cut off"):
        format_of(path)


def test_folders_that_are_none(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="it is empty; give such a folder"):
        format_of(tmp_path / "empty")
    folder(tmp_path / "other", "a.hdf5")
    with pytest.raises(DataError, match=r"not a Minari dataset's folder .*: it holds a\.hdf5; give .* or one file"):
        format_of(tmp_path / "other")
    (tmp_path / "half" / "data").mkdir(parents=True)
    with pytest.raises(DataError, match=r"not a Minari dataset: it has no data/metadata\.json"):
        format_of(tmp_path / "half")
    with pytest.raises(DataError, match="nowhere does not exist; expected HDF5 files"):
        format_of(tmp_path / "nowhere")


def ogbench_file(path):
    rng = np.random.default_rng(0)
    data = {"observations": rng.normal(size=(10, 3)), "actions": rng.normal(size=(10, 2))}
    np.savez(path / "a.npz", **data, terminals=np.arange(10) % 5 == 4)
    return path / "a.npz"


def robomimic_file(path):
    with h5py.File(path / "a.hdf5", "w") as file:
        for number in (0, 1):
            file[f"data/demo_{number}/obs/state"] = np.zeros((5, 3))
            file[f"data/demo_{number}/actions"] = np.zeros((5, 2))
        file["mask/one"] = np.array([b"demo_1"])
    return path / "a.hdf5"


SAMPLES = {
    "d3rlpy": lambda path: Path(shutil.copy(RECORDED / "d3rlpy" / "d3rlpy_tuple.h5", path)),
    "lerobot": lambda path: Path(shutil.copytree(RECORDED / "lerobot", path / "lerobot")),
    "ogbench": ogbench_file,
    "rlds": lambda path: Path(shutil.copytree(RECORDED / "rlds" / "1.0.0", path / "rlds")),
    "robomimic": robomimic_file,
}


@pytest.mark.parametrize("name", SAMPLES)
def test_altered_bytes_are_one_line_or_harmless(tmp_path, name):
    if name == "lerobot":
        pytest.importorskip("pyarrow")
    target = SAMPLES[name](tmp_path)
    files = [file for file in sorted(target.rglob("*")) if file.is_file()] if target.is_dir() else [target]
    rng, messages = np.random.default_rng(0), []
    for _ in range(60):
        file = files[rng.integers(len(files))]
        whole = file.read_bytes()
        content = bytearray(whole)
        for position in rng.integers(0, len(whole), 3):
            content[position] = rng.choice([0, 255, content[position] ^ 1])
        file.write_bytes(bytes(content))
        try:
            recording(READERS[format_of(target)](target, lambda line: None), target.name)
        except (DataError, InvalidInput) as error:
            messages.append(str(error))
        file.write_bytes(whole)
    assert messages
    assert not any("\n" in message for message in messages)
