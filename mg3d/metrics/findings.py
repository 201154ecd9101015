"""A rule-based keyword labeller of findings in chest CT reports, with simple negation.

It stands in for a trained CT labeller (RadBERT, RadEval), which needs weights that are not here:
scores from it are named ``keyword_*`` and are not clinical efficacy. The same labeller reads the
generated and the reference text. Negation follows the idea of NegEx (Chapman et al. 2001): a cue
negates the findings after it up to the end of the clause.
"""

import re
from collections.abc import Sequence

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
    "emphysema": r"emphysem\w*",
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
_BEFORE = re.compile(
    r"\b(?:no|not|without|absence of|absent|free of|negative for|denies|neither|nor|rules? out)\b"
)
_AFTER = re.compile(
    r"^[^.;]*?\b(?:(?:is|are|was|were) (?:not|absent|excluded)|not (?:seen|observed|detected"
    r"|identified|present)|(?:has|have) resolved)\b"
)
_CLAUSE = re.compile(r"[;:]|\.(?!\d)|\n|\b(?:but|however|although|except|while|whereas)\b")


def findings(text: str) -> set[str]:
    """Names of the findings that ``text`` asserts, e.g. {'nodule'} for 'No effusion. A nodule.'"""
    asserted = set()
    for clause in _CLAUSE.split(text.lower()):
        for name, pattern in _COMPILED.items():
            for match in pattern.finditer(clause):
                up_to, after = clause[: match.end()], clause[match.end() :]
                if not _BEFORE.search(up_to) and not _AFTER.search(after):
                    asserted.add(name)
    return asserted


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
