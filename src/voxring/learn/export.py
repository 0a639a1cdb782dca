"""Models for other programs: as a fitted scikit-learn estimator in a skops file, and as an ONNX graph in float64.

Neither runs code when it is read. Both take features in standardised units, a row for each voxel: a feature map's
integers over ``study.unit``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from voxring.errors import ModelError
from voxring.learn.discriminant import Discriminant, shrunk
from voxring.learn.model import Model


def scikit_learn(model: Model) -> Any:
    """Return the fitted estimator of scikit-learn that predicts the same.

    Its numbers are float64 in the form that scikit-learn has, which loses digits where means are large against spreads.

    Raises
    ------
    ModelError
        scikit-learn is not installed.
    """
    try:
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
        from sklearn.linear_model import LogisticRegression, RidgeClassifier
        from sklearn.naive_bayes import GaussianNB
    except ImportError as error:
        raise ModelError("scikit-learn is needed: pip install 'voxring[export]'") from error
    moments, of = model.moments, model.discriminant
    places = range(len(moments.classes))
    means = np.array([[float(x) for x in moments.mean(k)] for k in places])
    priors = np.array(model.settings.get("priors") or [n / moments.count for n in moments.counts])
    made: Any
    if model.classifier == "gnb":
        made = GaussianNB(priors=model.settings.get("priors"))
        made.theta_, made.class_prior_, made.class_count_ = means, priors, np.array(moments.counts, float)
        made.var_ = np.array([1 / np.diag(of.whiten[k]) ** 2 for k in places])
        made.epsilon_ = 0.0  # in var_ already
    elif model.classifier == "qda":
        made = QuadraticDiscriminantAnalysis(solver="eigen", priors=model.settings.get("priors"))
        found = [
            np.linalg.eigh(
                [[float(x) for x in row] for row in shrunk(moments.covariance(k), n, model.settings.get("shrinkage"))]
            )
            for k, n in enumerate(moments.counts)
        ]
        made.means_, made.priors_ = means, priors
        made.scalings_, made.rotations_ = [values for values, _ in found], [vectors for _, vectors in found]
    else:
        made = LogisticRegression() if model.classifier == "logistic" else LinearDiscriminantAnalysis(solver="lsqr")
        if model.classifier == "ridge":  # fitted to nothing, so that it knows its labels in the way of its version
            made = RidgeClassifier().fit(np.zeros((len(places), len(means[0]))), model.values)
            made.set_params(**model.settings)
        made.coef_ = of.linear
        made.intercept_ = of.constants - (of.linear * of.centres).sum(axis=1)
        if len(places) == 2:
            made.coef_ = made.coef_[1:] - made.coef_[:1]
            made.intercept_ = made.intercept_[1:] - made.intercept_[:1]
    if model.classifier != "ridge":
        made.classes_ = np.array(model.values)
    made.n_features_in_ = len(moments.features)
    return made


def write_skops(model: Model, path: str | Path) -> None:
    """Write the estimator of `scikit_learn` for ``skops.io.load``, which needs to trust no type for it.

    Raises
    ------
    ModelError
        skops is not installed, or the file cannot be written.
    """
    try:
        from skops import io
    except ImportError as error:
        raise ModelError("skops is needed: pip install 'voxring[export]'") from error
    _write(path, io.dumps(scikit_learn(model)))


def write_onnx(model: Model, path: str | Path) -> None:
    """Write an ONNX graph: ``features`` (n, F) float64 to ``label`` (n,) int64 and ``probabilities`` (n, K) float64.

    Ridge has ``scores`` in place of probabilities.

    Raises
    ------
    ModelError
        onnx is not installed, or the file cannot be written.
    """
    try:
        import onnx
    except ImportError as error:
        raise ModelError("onnx is needed: pip install 'voxring[export]'") from error
    _write(path, _graph(onnx, model.discriminant, model).SerializeToString())


def _graph(onnx: Any, of: Discriminant, model: Model) -> Any:
    """Scores by matrix products: of linear ones centred once, of quadratic ones for each class."""
    helper, double = onnx.helper, onnx.TensorProto.DOUBLE
    nodes, constants = [], []

    def constant(name: str, values: Any) -> str:
        constants.append(onnx.numpy_helper.from_array(np.asarray(values), name))
        return name

    def node(operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    last = constant("last", np.array([1], np.int64))
    if of.whiten.shape[1] == 0:
        z = node("Sub", ["features", constant("centre", of.centres[0])], "z")
        products = node("MatMul", [z, constant("coefficients", of.linear.T)], "products")
        scores = node("Add", [products, constant("constants", of.constants)], "scores")
    else:
        columns = []
        half = constant("half", np.array(-0.5))
        for k in range(len(of.constants)):
            z = node("Sub", ["features", constant(f"centre{k}", of.centres[k])], f"z{k}")
            white = node("MatMul", [z, constant(f"whiten{k}", of.whiten[k].T)], f"white{k}")
            apart = node("Sub", [white, constant(f"offset{k}", of.offsets[k])], f"apart{k}")
            total = node("ReduceSum", [node("Mul", [apart, apart], f"square{k}"), last], f"total{k}", keepdims=1)
            columns.append(node("Mul", [total, half], f"score{k}"))
        joined = node("Concat", columns, "joined", axis=1)
        scores = node("Add", [joined, constant("constants", of.constants)], "scores")
    place = node("ArgMax", [scores], "place", axis=1, keepdims=0)
    node("Gather", [constant("labels", np.array(model.values, np.int64)), place], "label")
    shown = node("Softmax", [scores], "probabilities", axis=1) if of.probabilistic else scores
    graph = helper.make_graph(
        nodes,
        f"voxring-{model.classifier}",
        [helper.make_tensor_value_info("features", double, ["n", len(model.moments.features)])],
        [
            helper.make_tensor_value_info("label", onnx.TensorProto.INT64, ["n"]),
            helper.make_tensor_value_info(shown, double, ["n", len(model.values)]),
        ],
        constants,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8, producer_name="voxring")
    said = {
        "features": " ".join(model.moments.features),
        "classes": " ".join(f"{value}={name}" for name, value in zip(model.classes, model.values, strict=True)),
        "digest": model.digest,
    }
    helper.set_model_props(made, said)
    onnx.checker.check_model(made)
    return made


def _write(path: str | Path, content: bytes) -> None:
    try:
        Path(path).write_bytes(content)
    except OSError as error:
        raise ModelError(f"{path}: the model cannot be written: {error.strerror}") from None
