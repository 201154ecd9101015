"""A rule-based keyword labeller of findings in chest CT reports, with negation and uncertainty.

It stands in for a trained CT labeller (RadBERT, RadEval), which needs weights that are not here:
scores from it are named ``keyword_*`` and are not clinical efficacy. The same labeller reads the
generated and the reference text. Cues follow NegEx (Chapman et al. 2001) and CheXpert's labeller
(Irvin et al. 2019): a cue concerns the findings after it, or right before it, within its clause.
"""

import re
from collections.abc import Sequence
from enum import StrEnum

import numpy as np

# The 18 labels of CT-RATE that text names by keyword, and five more that reports often state.
_PATTERNS = {
    "medical_material": r"stents?|pacemakers?|catheters?|prosthes[ie]s|sutures?|clips?|wires?"
    r"|chest ports?|\bleads?\b",
    "arterial_calcification": r"(?:aort\w*|arterial|atheroscler\w*)[^.;,]*calcif\w*"
    r"|calcif\w*[^.;,]*(?:aort\w*|(?<!coronary )\barter\w*)|atheroma\w*",
    "coronary_calcification": r"coronary[^.;,]*calcif\w*|calcif\w*[^.;,]*coronar\w*",
    "cardiomegaly": r"cardiomegaly|(?:heart|cardiac)[^.;,]*(?:enlarged|increased)"
    r"|(?:enlarged|enlargement of the) (?:heart|cardiac)\w*",
    "pericardial_effusion": r"pericardial (?:effusions?|fluid)",
    "pleural_effusion": r"pleural (?:effusions?|fluid)|(?<!pericardial )\beffusions?\b",
    "hiatal_hernia": r"hiat\w+ herni\w*",
    "lymphadenopathy": r"lymphadenopath\w*|enlarged (?:\w+ ){0,3}lymph nodes?"
    r"|lymph nodes? enlarge\w*",
    "emphysema": r"(?<!subcutaneous )emphysem\w*",
    "atelectasis": r"atelecta\w*",
    "nodule": r"(?:micro)?nodul\w*",
    "mass": r"\bmass(?:es)?\b|tumou?rs?",
    "opacity": r"ground[- ]?glass|opacit\w*|opacif\w*",
    "consolidation": r"consolidat\w*",
    "fibrosis": r"fibro\w*|sequela\w*",
    "mosaic_attenuation": r"mosaic",
    "peribronchial_thickening": r"peribronchial (?:thick|cuff)\w*|bronchial wall thick\w*"
    r"|thickened (?:\w+ )?airway walls?",
    "bronchiectasis": r"bronchiecta\w*",
    "septal_thickening": r"septal thick\w*|thickened (?:interlobular )?septa\w*",
    "fracture": r"fractur\w*",
    "pneumothorax": r"pneumothora\w*",
}
FINDINGS = tuple(_PATTERNS)
_COMPILED = {name: re.compile(pattern) for name, pattern in _PATTERNS.items()}
_NOT = (
    r"\b(?:no|not|without|absence of|absent|free of|negative for|denies|neither|nor|rules? out)\b"
)
_PERHAPS = (
    r"\b(?:possibl[ey]|probabl[ey]|likely|questionable|equivocal|suspected|may (?:be|represent)"
    r"|might (?:be|represent)|could (?:be|represent)|(?:suspicion|suspicious|concerning|worrisome)"
    r" (?:for|of)|cannot exclude|cannot rule out|not exclude|differential)\b"
)
_BEFORE, _PERHAPS_BEFORE = re.compile(_NOT), re.compile(_PERHAPS)
_AFTER = re.compile(
    r"^[^.;]*?\b(?:(?:is|are|was|were) (?:absent|excluded)|not (?:seen|observed|detected"
    r"|identified|present|evident)|(?:has|have) resolved)\b"
)
_PERHAPS_AFTER = re.compile(
    r"^[^.;,]*?\b(?:(?:cannot|can not|could not) be (?:fully |completely )?(?:excluded|ruled out)"
    r"|(?:is|are) (?:not excluded|possible|probable|likely|suspected|questionable))\b"
)
# Says that something is as it was, not that it is absent.
_NO_CHANGE = re.compile(
    r"\b(?:no|without) (?:(?:significant|relevant|interval|obvious|further) )*"
    r"(?:change|increase|decrease|growth|progression|difference)s?\b|\bnot only\b"
)
_CLAUSE = re.compile(
    r"[;:]|\.(?!\d)|\n|\b(?:but|however|although|except|while|whereas|there (?:is|are))\b"
)
# A nodule or mass of these is none of the lung.
_ELSEWHERE = re.compile(
    r"\b(?:thyroid|adrenal|hepatic|liver|renal|kidney|breast|splenic|spleen|pancrea\w*)\b"
)
_OF_THE_LUNG = frozenset(("nodule", "mass"))


class Status(StrEnum):
    """What a text says of a finding that it names."""

    PRESENT = "present"
    UNCERTAIN = "uncertain"
    ABSENT = "absent"


def statuses(text: str) -> dict[str, Status]:
    """Findings that ``text`` names; of several mentions the most certain of presence counts."""
    found: dict[str, Status] = {}
    for clause in _CLAUSE.split(_NO_CHANGE.sub(" ", text.lower())):
        for name, pattern in _COMPILED.items():
            for match in pattern.finditer(clause):
                if name in _OF_THE_LUNG and _ELSEWHERE.search(clause):
                    continue
                said = _status(clause[: match.end()], clause[match.end() :])
                found[name] = min(said, found.get(name, said), key=tuple(Status).index)
    return found


def _status(up_to: str, after: str) -> Status:
    """By the words of a clause up to the end of the finding's, and after it.

    Doubt outdoes negation: its cues contain negations ("cannot be excluded").
    """
    if _PERHAPS_AFTER.search(after) or _PERHAPS_BEFORE.search(up_to):
        return Status.UNCERTAIN
    negated = _BEFORE.search(up_to) or _AFTER.search(after)
    return Status.ABSENT if negated else Status.PRESENT


def findings(text: str) -> set[str]:
    """Names of the findings that ``text`` asserts, e.g. {'nodule'} for 'No effusion. A nodule.'

    A doubtful finding counts as asserted ("U-ones" of Irvin et al. 2019).
    """
    return {name for name, status in statuses(text).items() if status != Status.ABSENT}


def finding_matrix(texts: Sequence[str]) -> np.ndarray:
    """Asserted findings of each text: int [N, len(FINDINGS)] in {0, 1}."""
    rows = [findings(text) for text in texts]
    return np.array([[int(name in row) for name in FINDINGS] for row in rows], dtype=int).reshape(
        -1, len(FINDINGS)
    )


def micro_f1(predicted: np.ndarray, reference: np.ndarray) -> float:
    """F1 over all (case, finding) cells; NaN if neither side asserts anything."""
    true_positive = int((predicted & reference).sum())
    total = int(predicted.sum() + reference.sum())
    return 2 * true_positive / total if total else float("nan")


def micro_precision(predicted: np.ndarray, reference: np.ndarray) -> float:
    """Share of the predicted cells that the reference asserts; NaN if nothing is predicted."""
    total = int(predicted.sum())
    return int((predicted & reference).sum()) / total if total else float("nan")


def micro_recall(predicted: np.ndarray, reference: np.ndarray) -> float:
    """Share of the asserted cells that are predicted; NaN if the reference asserts nothing."""
    return micro_precision(reference, predicted)


def example_f1(predicted: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """F1 of each case over its findings [N]; NaN where neither side asserts anything."""
    true_positive = (predicted & reference).sum(axis=1)
    total = predicted.sum(axis=1) + reference.sum(axis=1)
    return np.where(total > 0, 2 * true_positive / np.maximum(total, 1), np.nan)


def macro_f1(predicted: np.ndarray, reference: np.ndarray) -> float:
    """Mean F1 over the findings that the reference asserts at least once; NaN if none."""
    total = predicted.sum(axis=0) + reference.sum(axis=0)
    present = reference.any(axis=0)
    if not present.any():
        return float("nan")
    true_positive = (predicted & reference).sum(axis=0)
    return float((2 * true_positive[present] / total[present]).mean())
