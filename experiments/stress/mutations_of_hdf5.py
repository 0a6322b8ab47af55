"""Mutations of HDF5 files: their bytes, and what h5py can say of a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from aaren_rl.experiments.stress.mutations import Mutation, Rng, mutate_bytes

SECRET = "secret.bin"
"""A file beside the mutated one, which no reader should read."""

_HUGE = 2**40


def mutate_hdf5(rng: Rng, path: Path, other: Path) -> Mutation:
    """Changes an HDF5 file in place: its structure three times out of four, else its bytes."""
    if rng.random() < 0.25:
        content, about = mutate_bytes(rng, path.read_bytes(), other.read_bytes())
        path.write_bytes(content)
        return Mutation(about)
    with h5py.File(path, "r+") as file:
        datasets, groups = _names(file)
        if rng.random() < 0.12:
            return _mutate_attribute(rng, file, groups)
        name = datasets[int(rng.integers(len(datasets)))]
        kind = str(rng.choice(sorted(_CHANGES)))
        values = file[name][:]
        if kind not in ("values", "one value"):
            del file[name]
        refuse = _CHANGES[kind](rng, file, name, values, path.with_name(SECRET))
        return Mutation(kind, name, bool(refuse))


def _names(file: h5py.File) -> tuple[list[str], list[str]]:
    datasets: list[str] = []
    groups: list[str] = ["/"]
    file.visititems(lambda name, item: (datasets if isinstance(item, h5py.Dataset) else groups).append(name))
    return sorted(datasets), sorted(groups)


def _mutate_attribute(rng: Rng, file: h5py.File, groups: list[str]) -> Mutation:
    group = groups[int(rng.integers(len(groups)))]
    attributes = file[group].attrs
    name = str(rng.choice(sorted(attributes))) if len(attributes) else "total_steps"
    values: list[Any] = [-1, 0, 10**9, 2**62, 1e30, float("nan"), "text", "\x1b[31mred", [1, 2, 3], None]
    value = values[int(rng.integers(len(values)))]
    if value is None:
        attributes.pop(name, None)
    else:
        attributes[name] = value
    return Mutation(f"attribute {name} is {value!r}", group)


def _external_link(rng: Rng, file: h5py.File, name: str, values: Any, secret: Path) -> bool:
    elsewhere = secret.with_suffix(".hdf5")
    with h5py.File(elsewhere, "w") as target:
        target["values"] = np.full_like(values, 1)
    file[name] = h5py.ExternalLink(str(elsewhere), "values")
    return True


def _external_storage(rng: Rng, file: h5py.File, name: str, values: Any, secret: Path) -> bool:
    secret.write_bytes(bytes(max(1, values.nbytes)))
    file.create_dataset(name, values.shape, values.dtype, external=[(str(secret), 0, h5py.h5f.UNLIMITED)])
    return True


def _virtual(rng: Rng, file: h5py.File, name: str, values: Any, secret: Path) -> bool:
    elsewhere = secret.with_suffix(".hdf5")
    with h5py.File(elsewhere, "w") as target:
        target["values"] = np.full_like(values, 1)
    # A dataset that names itself, or one of another file.
    source = (file.filename, name) if rng.random() < 0.4 else (str(elsewhere), "values")
    layout = h5py.VirtualLayout(values.shape, values.dtype)
    layout[...] = h5py.VirtualSource(*source, shape=values.shape)
    file.create_virtual_dataset(name, layout)
    return True


def _soft_link(rng: Rng, file: h5py.File, name: str, values: Any, secret: Path) -> None:
    file[name] = h5py.SoftLink(str(rng.choice(["/nowhere", f"/{name}", "/"])))


def _huge(rng: Rng, file: h5py.File, name: str, values: Any, secret: Path) -> None:
    shape = (int(rng.choice([10**8, 10**10, _HUGE])), *values.shape[1:])
    file.create_dataset(name, shape, values.dtype, chunks=(1024, *values.shape[1:]), compression="gzip")


def _wide(rng: Rng, file: h5py.File, name: str, values: Any, secret: Path) -> None:
    shape = (*values.shape[:1], int(rng.choice([10**7, 10**9])))
    file.create_dataset(name, shape, values.dtype, chunks=(1, 1024), compression="gzip")


def _dtype(rng: Rng, file: h5py.File, name: str, values: Any, secret: Path) -> None:
    dtypes = ["S8", "c16", "f8", "f2", "i8", "u1", "?", "object", "compound", "enum", "reference"]
    kind = str(rng.choice(dtypes))
    if kind == "object":
        file.create_dataset(name, data=np.array([b"text"] * max(1, len(values)), object), dtype=h5py.string_dtype())
    elif kind == "compound":
        file.create_dataset(name, values.shape, np.dtype([("a", "f4"), ("b", "i4")]))
    elif kind == "enum":
        file.create_dataset(name, values.shape, h5py.enum_dtype({"NO": 0, "YES": 1}))
    elif kind == "reference":
        file.create_dataset(name, values.shape, h5py.ref_dtype)
    else:
        with np.errstate(all="ignore"):
            file[name] = np.asarray(values).astype(kind)


def _missing(rng: Rng, file: h5py.File, name: str, values: Any, secret: Path) -> None:
    """Leaves it deleted."""


def _group(rng: Rng, file: h5py.File, name: str, values: Any, secret: Path) -> None:
    file.create_group(name)["values"] = values


def _narrower(rng: Rng, file: h5py.File, name: str, values: Any, secret: Path) -> bool:
    file[name] = values[..., :1] if values.ndim > 1 else values[:1]
    # A single number in place of a row, or of a column, must not be spread over it.
    return bool(values.shape != file[name].shape)


def _shape(rng: Rng, file: h5py.File, name: str, values: Any, secret: Path) -> None:
    shapes = [values[None], values[..., None], values.reshape(-1), values[:0], values[1:], values.reshape(-1)[0]]
    file[name] = shapes[int(rng.integers(len(shapes)))]


def _values(rng: Rng, file: h5py.File, name: str, values: Any, secret: Path) -> None:
    numbers = [np.nan, np.inf, -np.inf, 1e39, -3e38, 1e300, 1e-40]
    with np.errstate(all="ignore"):
        file[name][...] = np.full(values.shape, numbers[int(rng.integers(len(numbers)))]).astype(values.dtype)


def _one_value(rng: Rng, file: h5py.File, name: str, values: Any, secret: Path) -> None:
    if values.size:
        changed = values.reshape(-1).copy()
        with np.errstate(all="ignore"):
            odd = np.array([rng.choice([np.nan, np.inf, 3e38])]).astype(values.dtype)
        changed[int(rng.integers(len(changed)))] = odd[0]
        file[name][...] = changed.reshape(values.shape)


_CHANGES = {
    "external link": _external_link,
    "external storage": _external_storage,
    "virtual dataset": _virtual,
    "soft link": _soft_link,
    "huge": _huge,
    "wide": _wide,
    "dtype": _dtype,
    "missing": _missing,
    "group": _group,
    "narrower": _narrower,
    "shape": _shape,
    "values": _values,
    "one value": _one_value,
}
