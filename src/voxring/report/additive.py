"""The additive statistics of a class, as far as the result file has any: moments, histogram, texture, features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from voxring.report import svg
from voxring.report.markup import Html, facts, folded, join, table, tag


def additive(statistics: Mapping[str, Any], features: Sequence[str], name: str) -> Html:
    """Return what ``document["classes"][name]["statistics"]`` says; what it does not hold is left out."""
    return join(_parts(statistics, features, name))


def _parts(statistics: Mapping[str, Any], features: Sequence[str], name: str) -> Iterator[Html]:
    if histogram := statistics.get("histogram"):
        yield tag("h4", "Histogram of the intensity")
        yield tag(
            "figure",
            svg.histogram(
                histogram["edges"],
                [max(0, count) for count in histogram["counts"]],  # noise may take one below
                f"Histogram of the intensity of {name}",
            ),
            tag("figcaption", f"{histogram['below']:,} voxels below the bins, {histogram['above']:,} above."),
        )
        edges = histogram["edges"]
        bins = [
            (f"{_g(a)} to {_g(b)}", f"{n:,}") for a, b, n in zip(edges, edges[1:], histogram["counts"], strict=False)
        ]
        yield folded("counts of the bins", table(("bin", "voxels"), bins, label=f"Histogram of {name}"))
        if quantiles := histogram.get("quantiles"):
            yield tag("h4", "Quantiles, read off the bins")
            yield _numbers(quantiles)
    for key, title in (("first_order", "First-order statistics"), ("moments", "Moments")):
        if key == "moments" and "first_order" in statistics:
            continue  # which holds them too
        if found := _scalars(statistics.get(key, {})):
            yield tag("h4", title)
            yield _numbers(found)
    if glcm := statistics.get("glcm"):
        yield tag("h4", f"Texture: grey-level co-occurrence, {glcm['levels']} levels")
        yield _numbers(_scalars(glcm.get("haralick", {})))
    if features and (means := statistics.get("feature_means")):
        yield tag("h4", "Features")
        rows = [(feature, _g(mean)) for feature, mean in zip(features, means, strict=False)]
        yield table(("feature", "mean"), rows, label=f"Feature means of {name}")
        if covariance := statistics.get("covariance"):
            matrix = [(feature, *map(_g, row)) for feature, row in zip(features, covariance, strict=False)]
            shown = table(("covariance", *features), matrix, label=f"Covariance of {name}", wide=True)
            yield folded("covariance of the features", shown)


def _scalars(found: Mapping[str, Any]) -> dict[str, float | None]:
    return {key: value for key, value in found.items() if value is None or isinstance(value, int | float)}


def _numbers(found: Mapping[str, float | None]) -> Html:
    return facts((key.replace("_", " "), _g(value)) for key, value in found.items())


def _g(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.6g}".replace("-", "−")
