"""A model card in Markdown, from what the record knows: nothing here is written by hand."""

from collections.abc import Mapping
from typing import Any

USE = (
    "Research use. No medical device, not validated for diagnosis. It answers for volumes under "
    "its contract and refuses others; it does not know that a study is unlike its training data."
)


def card(name: str, tags: Mapping[str, str], about: Mapping[str, Any]) -> str:
    """The card of a version; ``about`` has the headline, with interval and nulls, if measured."""
    lines = [f"# {name}", "", USE, ""]
    headline = about.get("headline")
    if headline:
        lines += [f"## {tags['task']}, test split", "", _headline(headline)]
        lines += [f"- null `{k}`: {_number(v)}" for k, v in headline["null"].items()]
        lines += ["", f"Data: {about['citation']}.", ""]
    admission = about["admission"]
    lung = admission["min_lung_mm"]
    gate = f"with {lung:g} mm of lung or more" if lung else "no gate on the body region"
    lines += [
        "## Input",
        "",
        f"- {'chest CT in HU' if admission['is_ct'] else 'no CT: another modality'}, {gate}",
        f"- volume contract `{about['contract']}`",
        "",
        "## Lineage",
        "",
        *(f"- {key}: `{value}`" for key, value in sorted(tags.items()) if key != "licence"),
        "",
        f"Licence: {tags['licence']}.",
        f"Down to the studies: `mg3d lineage models:/{name}/VERSION`.",
    ]
    return "\n".join(lines) + "\n"


def _headline(headline: Mapping[str, Any]) -> str:
    interval = headline["interval"]
    within = f", 95 % interval {interval[0]:.3f} to {interval[1]:.3f}" if interval else ""
    return f"- {headline['name']}: {_number(headline['value'])}{within}"


def _number(value: float | None) -> str:
    return "unavailable" if value is None else f"{value:.3f}"
