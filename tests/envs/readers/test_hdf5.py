import io
import os
import resource
import signal
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from h5py import h5d, h5p, h5s, h5t

from aaren_rl.envs.readers.d4rl import read_file
from aaren_rl.envs.readers.hdf5 import DEPTH, checked, open_checked, require_memory
from aaren_rl.errors import DataError

VALUES = np.arange(12.0).reshape(6, 2)


def write(path, fill):
    with h5py.File(path, "w") as file:
        fill(file)
    return path


def put(file, name, value):
    file[name] = value


def virtual(source, name="v"):
    def fill(file):
        layout = h5py.VirtualLayout((6, 2), "f8")
        layout[:] = h5py.VirtualSource(source, name, shape=(6, 2))
        file.create_virtual_dataset("v", layout)

    return fill


def contains_itself(file):
    group = file.create_group("a/b")
    group["a"] = file["a"]


def with_two_names(file):
    # Each level doubles the number of paths.
    group = file
    for _ in range(20):
        group = group.create_group("one")
        group.parent["two"] = group


def deep(file):
    group = file
    for _ in range(3_000):
        group = group.create_group("g")


def refers(file):
    file["x"] = VALUES
    file.create_dataset("r", data=[file["x"].ref], dtype=h5py.ref_dtype)


def refers_to_region(file):
    file["x"] = VALUES
    file.create_dataset("r", data=[file["x"].regionref[:2]], dtype=h5py.regionref_dtype)


def refers_in_a_mixture(file):
    pair = np.dtype([("n", "f8"), ("to", h5py.ref_dtype)])
    file.create_dataset("r", (3,), pair)


def with_unknown_filter(file):
    plan = h5p.create(h5p.DATASET_CREATE)
    plan.set_chunk((6, 2))
    # Optional, so that it can be written without the filter's program.
    plan.set_filter(32_015, 1)
    h5d.create(file.id, b"x", h5t.IEEE_F64LE, h5s.create_simple((6, 2)), plan)


REFUSED = {
    "external link": (lambda file: put(file, "e", h5py.ExternalLink("other.h5", "/x")), r"'/e' is an external link"),
    "external link in a group": (
        lambda file: put(file, "g/h/e", h5py.ExternalLink("/etc/passwd", "/")),
        r"'/g/h/e' is an external link",
    ),
    "external storage": (
        lambda file: file.create_dataset("x", (10,), "u1", external=[("/etc/passwd", 0, 10)]),
        r"'/x' has external storage",
    ),
    "virtual dataset": (virtual("other.h5"), r"'/v' is a virtual dataset"),
    "virtual dataset of itself": (virtual("."), r"'/v' is a virtual dataset"),
    "virtual dataset of this file": (
        lambda file: (put(file, "x", VALUES), virtual(".", "x")(file)),
        r"'/v' is a virtual dataset",
    ),
    "soft link to itself": (lambda file: put(file, "s", h5py.SoftLink("/s")), r"'/s' is a soft link to '/s'"),
    "soft links in a circle": (
        lambda file: (put(file, "s", h5py.SoftLink("/t")), put(file, "t", h5py.SoftLink("/s"))),
        r"which cannot be followed",
    ),
    "soft link to nothing": (lambda file: put(file, "s", h5py.SoftLink("/x")), r"'/s' is a soft link to '/x'"),
    "soft link to a group": (lambda file: put(file, "g/s", h5py.SoftLink("/")), r"which is not a dataset"),
    "group in itself": (contains_itself, r"second name of a group"),
    "root in a group": (lambda file: put(file, "g/root", file["/"]), r"second name of a group"),
    "groups with two names": (with_two_names, r"second name of a group"),
    "deep groups": (deep, rf"lies more than {DEPTH} groups deep"),
    "references": (refers, r"'/r' holds TypeReferenceID"),
    "references to regions": (refers_to_region, r"'/r' holds TypeReferenceID"),
    "references in a mixture": (refers_in_a_mixture, r"'/r' holds TypeCompoundID"),
    "filter": (with_unknown_filter, r"'/x' needs filter 32015"),
    "huge contiguous": (lambda file: file.create_dataset("x", (10**12,), "f4"), r"holds at most 64.0 MiB"),
    "huge chunked": (
        lambda file: file.create_dataset("x", (10**12,), "f4", chunks=True, compression="gzip"),
        r"'/x' brings the file to 3725.3 GiB",
    ),
    "huge chunk": (
        lambda file: file.create_dataset("x", (10,), "f4", chunks=(10**8,), maxshape=(None,)),
        r"'/x' brings the file to 381.5 MiB",
    ),
    "many that are huge together": (
        lambda file: [file.create_dataset(f"x{number}", (10**6,), "f4") for number in range(30)],
        r"holds at most 64.0 MiB",
    ),
    "huge under many names": (
        lambda file: [put(file, f"name{number}", file.require_dataset("x", (10**6,), "f4")) for number in range(30)],
        r"holds at most 64.0 MiB",
    ),
    "huge under many soft names": (
        lambda file: (
            file.create_dataset("x", (10**6,), "f4"),
            [put(file, f"name{number}", h5py.SoftLink("/x")) for number in range(30)],
        ),
        r"holds at most 64.0 MiB",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_reaches_outside_or_beyond_is_refused(tmp_path, name):
    fill, message = REFUSED[name]
    path = write(tmp_path / "a.hdf5", fill)
    began = time.perf_counter()
    with pytest.raises(DataError, match=message) as error:
        checked(path)
    assert str(path) in str(error.value)
    assert time.perf_counter() - began < 5


def test_secret_of_another_file_is_never_read(tmp_path):
    """The readers refuse a file whose observations lie in another one."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"\x11" * 600)
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.create_dataset("observations", (60, 10), "u1", external=[(str(secret), 0, 600)])
        for key in ("actions", "next_observations"):
            file[key] = np.zeros((60, 10))
        for key in ("rewards", "terminals", "timeouts"):
            file[key] = np.ones(60)
    with pytest.raises(DataError, match=r"'/observations' has external storage"):
        read_file(tmp_path / "a.hdf5")


def test_ordinary_files_pass_with_their_values(tmp_path):
    def fill(file):
        file["g/x"] = VALUES
        file["g/same"] = file["g/x"]
        file["soft"] = h5py.SoftLink("/g/x")
        file["far"] = h5py.SoftLink("soft")
        file["scalar"], file["text"], file["empty"] = 3.0, "SAC", h5py.Empty("f4")
        file["type"] = np.dtype("f4")
        file.create_dataset("texts", data=["a", "bc"] * 50, dtype=h5py.string_dtype(), chunks=True, maxshape=(None,))
        file.create_dataset("fixed", data=np.array([b"ab"] * 4))
        images = file.create_dataset("images", (4,), h5py.vlen_dtype(np.uint8), chunks=True)
        for number in range(4):
            images[number] = np.arange(number + 1, dtype=np.uint8)
        for number, options in enumerate(({"compression": "gzip"}, {"compression": "lzf"}, {"fletcher32": True})):
            file.create_dataset(f"filtered{number}", data=VALUES, chunks=True, shuffle=True, **options)
        file.create_dataset("scaled", data=np.arange(10), chunks=(10,), scaleoffset=0)
        file["mixture"] = np.zeros(3, dtype=[("a", "f4"), ("b", "i4", (3,))])
        file["flags"] = np.ones(3, dtype=bool)

    path = write(tmp_path / "a.hdf5", fill)
    with open_checked(path) as file:
        for name in ("g/x", "g/same", "soft", "far", "filtered0", "filtered1", "filtered2"):
            np.testing.assert_array_equal(file[name][()], VALUES)
        assert file["texts"][1] == b"bc"


def test_zeros_that_gzip_as_well_as_they_can_pass(tmp_path):
    # No filter makes less of values, so no whole file is refused for its size.
    path = write(
        tmp_path / "a.hdf5",
        lambda file: file.create_dataset("x", data=np.zeros(25_000_000, "f4"), chunks=True, compression="gzip"),
    )
    assert path.stat().st_size < 2e6
    checked(path)


def test_one_value_under_many_addresses_counts_many_times(tmp_path):
    """Values of variable length lie elsewhere in the file, and all rows may name the same one."""

    def fill(file):
        rows = file.create_dataset("x", (3_000,), h5py.vlen_dtype(np.uint8), chunks=(3_000,), maxshape=(None,))
        rows[0] = np.zeros(1_000_000, dtype=np.uint8)

    path = write(tmp_path / "a.hdf5", fill)
    checked(path)
    with h5py.File(path) as file:
        start = file["x"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[start : start + 16 * 3_000] = content[start : start + 16] * 3_000
    path.write_bytes(content)
    with h5py.File(path) as file:
        # The file is well-formed: its last row is the first.
        assert len(file["x"][2_999]) == 1_000_000
    with pytest.raises(DataError, match=r"'/x' brings the file to 2.8 GiB"):
        checked(path)


@pytest.mark.parametrize("userblock", [0, 1024])
@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_heaps_of_whole_files_pass(tmp_path, libver, userblock):
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w", libver=libver, userblock_size=userblock) as file:
        file.create_dataset("texts", data=["abc" * i for i in range(500)], dtype=h5py.string_dtype(), chunks=True)
        file["text"] = "SAC"
        file.create_dataset("never written", (5,), h5py.string_dtype())
        numbers = file.create_dataset("numbers", (4,), h5py.vlen_dtype("f8"), chunks=(2,))
        for i in range(3):
            numbers[i] = np.arange(i * 1_000.0)
    checked(path)


@pytest.mark.parametrize(("index", "length"), [(0, 0), (0, 8), (0, 2**40), (1, 2**40), (1, 2**64 - 16), (1, 2**64 - 1)])
def test_heap_that_has_no_end_is_refused_and_not_walked(tmp_path, index, length):
    """HDF5 itself walks a heap with a size of zero for ever."""
    path = write(tmp_path / "a.hdf5", lambda file: put(file, "x", ["abc", "de"]))
    content = bytearray(path.read_bytes())
    value = content.find(b"GCOL") + 16
    content[value : value + 16] = index.to_bytes(2, "little") + bytes(6) + length.to_bytes(8, "little")
    path.write_bytes(content)
    with pytest.raises(DataError, match="'/x' holds values of variable length in a damaged heap"):
        checked(path)


def test_names_with_terminal_escapes_are_shown_escaped(tmp_path):
    path = write(tmp_path / "a.hdf5", lambda file: put(file, "x\x1b[2J\n", h5py.SoftLink("/\x1b]0;title\x07")))
    with pytest.raises(DataError) as error:
        checked(path)
    assert r"'/x\x1b[2J\n' is a soft link to '/\x1b]0;title\x07'" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\x89HDF\r\n\x1a\n" + b"\xff" * 200])
def test_what_is_not_hdf5_is_one_clear_error(tmp_path, content):
    (tmp_path / "a.hdf5").write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.hdf5 \({len(content)} bytes\) cannot be read as HDF5"):
        checked(tmp_path / "a.hdf5")


def test_path_without_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "none.hdf5", tmp_path, tmp_path / "pipe"):
        with pytest.raises(DataError, match="does not exist; expected an HDF5 file"):
            checked(path)


def test_errors_of_the_block_pass_through(tmp_path):
    path = write(tmp_path / "a.hdf5", lambda file: put(file, "x", VALUES))
    with pytest.raises(KeyError), open_checked(path) as file:
        file["y"]
    assert not file


def test_memory_that_is_free_is_kept_to():
    require_memory(1_000, "a")
    with pytest.raises(DataError, match=r"b needs 1048576\.0 GiB of memory"):
        require_memory(1 << 50, "b")


def test_limit_of_the_process_counts_as_memory():
    def limited():
        resource.setrlimit(resource.RLIMIT_AS, (_taken() + (100 << 20),) * 2)
        require_memory(50 << 20, "small")
        with pytest.raises(DataError, match="large needs 200.0 MiB"):
            require_memory(200 << 20, "large")

    assert in_child(limited) == 0


def _taken():
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def in_child(call, seconds=20):
    """Exit status of a call in a forked child; negative for a signal, as of a crash or of time that ran out."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(seconds)
            call()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _small_file(libver):
    """A file with every kind of structure that the readers meet, as bytes."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=libver, track_order=libver == "latest") as file:
        for key in ("observations", "next_observations", "actions"):
            file.create_dataset(key, data=np.ones((60, 2)), chunks=(7, 2), maxshape=(None, 2), compression="gzip")
        for key in ("rewards", "terminals", "timeouts"):
            file[key] = np.eye(60)[59]
        file["soft"] = h5py.SoftLink("/rewards")
        file.create_dataset("infos/text", data=["a", "bc"] * 3, dtype=h5py.string_dtype(), chunks=True)
        for number in range(12):
            file.create_group(f"episode_{number}").attrs["id"] = number
    return buffer.getvalue()


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_altered_bytes_are_harmless_or_one_error(tmp_path, libver):
    content, rng, path = _small_file(libver), np.random.default_rng(0), tmp_path / "a.hdf5"
    structure = [i for i, byte in enumerate(content) if byte]

    def attempt():
        resource.setrlimit(resource.RLIMIT_AS, (_taken() + (2 << 30),) * 2)
        try:
            read_file(path, say=lambda line: None)
        except DataError:
            return

    for _ in range(60):
        altered = bytearray(content)
        for place in rng.choice(structure, rng.integers(1, 5)):
            altered[place] = rng.choice([0, 1, 0x7F, 0xFF, altered[place] ^ (1 << rng.integers(8))])
        path.write_bytes(altered)
        assert in_child(attempt) == 0
