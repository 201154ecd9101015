"""nnU-Net's ``splits_final.json``: a list of folds, each ``{"train": [names], "val": [names]}``.

Names are file names without ending (``lung_001``, ``patient001_frame01``). Only the first fold is
read; who is in the same fold with the same patient is for `split_cases` to refuse.
"""

import json
from pathlib import Path

FILE = "splits_final.json"


def first_fold(folder: Path) -> dict[str, str] | None:
    """``train`` or ``val`` by name; None without the file.

    Raises ValueError for another format and for a name in both parts.
    """
    file = folder / FILE
    if not file.exists():
        return None
    try:
        fold = json.loads(file.read_text())[0]
        parts = {part: [str(name) for name in fold[part]] for part in ("train", "val")}
    except (ValueError, KeyError, IndexError, TypeError):
        raise ValueError(
            f'{file} is no nnU-Net split: expected a list of {{"train": [...], "val": [...]}}'
        ) from None
    twice = sorted(set(parts["train"]) & set(parts["val"]))
    if twice:
        raise ValueError(f"{file}: {twice[0]} is in train and in val of the first fold")
    return {name: part for part, names in parts.items() for name in names}
