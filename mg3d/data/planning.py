"""Which split and which shard a study belongs to: by hash, so that others may come and go.

**Split.** SHA-256 of the seed and the patient's pseudonym, read as a number in [0, 1), is compared
with the fractions. A patient never changes sides when others come or go, and two studies of a
patient never part. Fractions hold in expectation, not exactly.

**Shard.** Studies of one split that are moved together, at most ``max_shard_studies``: those whose
SHA-256 begins with the same bits, as few bits as keep the shard within its bound (extendible
hashing). Its name is the split and the bits, ``train-0110``. A shard that overflows is halved, no
other changes; one from which studies vanish may join its sibling.
"""

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from mg3d.params import BuildManifest

if TYPE_CHECKING:
    import pandas as pd

SPLITS = ("train", "validation", "test")
_BITS = 64


def assign_split(patient_id: str, params: BuildManifest) -> str:
    """The split of a patient: ``train``, ``validation`` or ``test``."""
    digest = hashlib.sha256(f"{params.seed}:{patient_id}".encode()).hexdigest()
    position = int(digest[:13], 16) / 16**13
    if position < params.test_fraction:
        return "test"
    if position < params.test_fraction + params.validation_fraction:
        return "validation"
    return "train"


def assign_splits(patient_ids: "pd.Series", params: BuildManifest) -> "pd.Series":
    """`assign_split` of each, computed once per patient; of categories `SPLITS`."""
    import pandas as pd

    places, patients = pd.factorize(patient_ids)
    keys = hash_keys([f"{params.seed}:{patient}" for patient in patients.tolist()])
    positions = (keys >> np.uint64(12)) / 2**52  # thirteen hex digits
    below = [params.test_fraction, params.test_fraction + params.validation_fraction]
    codes = np.array([2, 1, 0], np.int8)[np.searchsorted(below, positions, side="right")]
    return pd.Series(pd.Categorical.from_codes(codes[places], SPLITS), index=patient_ids.index)


def hash_keys(ids: Iterable[str]) -> np.ndarray:
    """The first 64 bits of each id's SHA-256, uint64."""
    digests = b"".join(hashlib.sha256(i.encode()).digest()[:8] for i in ids)
    return np.frombuffer(digests, ">u8").astype(np.uint64)


def assign_shards(splits: "pd.Series", keys: np.ndarray, max_shard_studies: int) -> "pd.Series":
    """The shard of each study, from its split and `hash_keys`; names are categories."""
    import pandas as pd

    names: list[str] = []
    codes = np.zeros(len(keys), np.int64)
    for split in SPLITS:
        members = np.flatnonzero(splits == split)
        members = members[np.argsort(keys[members], kind="stable")]
        for num_bits in range(_BITS + 1):
            if not len(members):
                break
            shift = np.uint64(_BITS - num_bits)
            prefixes = keys[members] >> shift if num_bits else np.zeros(len(members), np.uint64)
            starts = np.flatnonzero(np.r_[True, prefixes[1:] != prefixes[:-1]])
            sizes = np.diff(np.r_[starts, len(members)])
            fits = (sizes <= max_shard_studies) | (num_bits == _BITS)
            done = np.repeat(fits, sizes)
            codes[members[done]] = len(names) + np.repeat(np.arange(fits.sum()), sizes[fits])
            bits = [
                f"{prefix:0{num_bits}b}" if num_bits else "all"
                for prefix in prefixes[starts[fits]].tolist()
            ]
            names += [f"{split}-{name}" for name in bits]
            members = members[~done]
    return pd.Series(pd.Categorical.from_codes(codes, names), index=splits.index)
