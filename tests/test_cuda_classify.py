"""The kernel of classify.cu against loops of Python's floats, to the bit, on machines without a GPU.

Its floats are IEEE's, each rounded once: what the host's compiler makes of them without contraction is what a device
computes. That the compiler for the device fuses none is seen in its PTX.
"""

import math
import re
import sys

import numpy as np
import pytest

from cuda_tools import carry, launches, nvrtc
from cuda_tools.emulation import EmulationError
from voxring.errors import DeviceError
from voxring.kernels.cuda import plans
from voxring.kernels.cuda.classifying import SHARED, Classifier, check_room, classify_plan, has_room

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="fibers and NVRTC's wheel are for Linux")

LOG2_HIGH, LOG2_LOW = 0.693147180369123816490, 1.90821492927058770002e-10


def exponential(value):
    """2^k times Taylor's series of what is left, each step rounded."""
    if value < -708.0:
        return 0.0
    k = round(value * 1.4426950408889634)
    r = (value - k * LOG2_HIGH) - k * LOG2_LOW
    e = 1.0 / math.factorial(13)
    for order in range(12, -1, -1):
        e = e * r + 1.0 / math.factorial(order)
    return math.ldexp(e, k)


def naive(stack, unit, centres, linear, constants, whiten, offsets):
    """The place of the highest score, and float32 probabilities, of one voxel's features."""
    scores = []
    for k, constant in enumerate(constants.tolist()):
        z = [int(x) * (1 / unit) - centre for x, centre in zip(stack, centres[k].tolist(), strict=True)]
        score = constant
        for weight, one in zip(linear[k].tolist(), z, strict=True):
            score += weight * one if weight else 0.0
        for r in range(whiten.shape[1]):
            row = -offsets[k, r].item()
            for j in range(r + 1):
                row += whiten[k, r, j].item() * z[j] if whiten[k, r, j] else 0.0
            score -= 0.5 * (row * row)
        scores.append(score)
    best = max(scores)
    powers = [exponential(score - best) for score in scores]
    total = 0.0
    for power in powers:
        total += power
    return scores.index(best), [np.float32(power * (1.0 / total)) for power in powers]


def example(features, classes, quadratic, seed=1, spread=30):
    """Weights, of which some are 0 and two classes' the same, and features of a few voxels."""
    rng = np.random.default_rng(seed)
    rows = features if quadratic else 0
    centres, linear = rng.normal(0, spread, (2, classes, features))
    constants, offsets = rng.normal(0, 3, classes), rng.normal(0, 1, (classes, rows))
    whiten = np.tril(rng.normal(0, 1 / spread, (classes, rows, features)))
    linear[:, 0] = 0
    weights = [centres, linear / spread, constants, whiten, offsets]
    for one in weights if classes > 2 else ():
        one[-1] = one[0]
    stack = np.rint(rng.normal(0, spread, (features, 150)) * 2**8).astype(np.int64)
    stack[:, :3] = np.array([0, 2**53 + 1, -(2**40)])
    return weights, stack


def run(weights, stack, values, text=None, mode="plain", **wanted):
    """The buffers after the kernel, and the plan."""
    _, _, constants, whiten, _ = weights
    model = np.concatenate([one.reshape(-1) for one in weights])
    how = {"labels": True, "probabilities": True} | wanted
    of = Classifier(model, len(stack), len(constants), whiten.shape[1], values, 2**8, **how)
    voxels = stack.shape[1]
    plan = classify_plan(of, (0, 1, 0, 1), voxels)
    buffers = {name: np.full(one.size, 77, one.dtype) for name, one in plan.buffers.items()}
    buffers |= {"model": model, "values": values, "stack": stack.reshape(-1)}
    carry.launch_all(plan, buffers, source_text=text, mode=mode)
    return buffers, plan


@pytest.mark.parametrize(("features", "classes", "quadratic"), [(5, 4, True), (3, 2, False), (40, 12, True)])
def test_labels_and_probabilities_are_those_of_the_loops(features, classes, quadratic):
    weights, stack = example(features, classes, quadratic)
    values = np.arange(10, 10 + classes).astype(np.uint16)
    buffers, plan = run(weights, stack, values)
    expected = [naive(x, 2**8, *weights) for x in stack.T]
    assert buffers["labels"].tolist() == [values[place] for place, _ in expected]
    assert len(set(buffers["labels"].tolist())) > 1
    chances = buffers["chances"].reshape(classes, -1)
    assert chances.T.tobytes() == np.array([chances_of for _, chances_of in expected], np.float32).tobytes()
    assert plan.launches[0].block[0] == (64 if features == 40 else 128)


def test_probabilities_below_the_least_normal_float_are_not_lost():
    apart = np.linspace(86, 106, 150)  # of scores: exp(-87.3) is 2^-126, exp(-103.3) 2^-149
    zero, one = np.zeros((2, 1)), np.array([[0.0], [1.0]])
    weights = [zero, one, np.zeros(2), np.zeros((2, 0, 1)), np.zeros((2, 0))]
    stack = -np.rint(apart * 2**8).astype(np.int64).reshape(1, -1)
    chances = run(weights, stack, np.array([1, 2], np.uint16))[0]["chances"].reshape(2, -1)[1]
    expected = np.array([naive(x, 2**8, *weights)[1][1] for x in stack.T], np.float32)
    assert ((expected > 0) & (expected < np.finfo(np.float32).tiny)).sum() > 100
    assert chances.tobytes() == expected.tobytes()


def test_what_is_not_wanted_is_not_written():
    weights, stack = example(3, 2, False)
    values = np.array([1, 2], np.uint16)
    assert run(weights, stack, values, labels=False)[0]["labels"].tolist() == [77]
    assert run(weights, stack, values, probabilities=False)[0]["chances"].tolist() == [77.0]


def test_more_than_shared_memory_holds_is_refused():
    values = np.zeros(60, np.uint8)
    of = Classifier(np.zeros(0), 132, 60, 0, values, 1, True, True)
    check_room(of)
    (launch,) = classify_plan(of, (0, 1, 0, 1), 1).launches
    assert (launch.block[0], launch.shared) == (32, SHARED)
    assert has_room(132, 60)
    assert not has_room(133, 60)
    said = r'at most 192 features and classes together, got 133 features and 60 classes: use device="cpu"'
    with pytest.raises(DeviceError, match=said):
        check_room(of._replace(features=133))


@pytest.mark.parametrize("arch", nvrtc.ARCHITECTURES)
def test_machine_code_keeps_its_budget_and_takes_the_arguments(arch):
    weights, stack = example(3, 2, False)
    _, plan = run(weights, stack, np.array([1, 2], np.uint16))
    (launch,) = plan.launches
    compiled = nvrtc.compile(plans.source_of("classify.cu"), launch.macros, arch)
    needs = nvrtc.resources(compiled)["classify"]
    assert (needs.spill_stores, needs.spill_loads) == (0, 0)
    assert needs.registers <= 64
    assert launches.packed(launch) == nvrtc.parameter_table(compiled.image, "classify")


def fused(text, macros):
    """Instructions of PTX that work on floats and are not single steps rounded to nearest, as IEEE has them."""
    ptx = nvrtc.compile(text, macros, 80, cubin=False, options=("--fmad=true", "-ftz=true")).image.decode()
    floats = re.findall(r"\b[a-z][a-z.]*\.(?:f32|f64)\b[.\w]*", ptx)
    steps, moves = (
        r"(add|mul|rcp)\.rn\.f64|cvt\.rn\.ftz\.f32\.f64",
        r"(mov|neg|max|selp|setp\.\w+)\.f64|(ld|st)[.\w]*\.f(32|64)",
    )
    plain = rf"{steps}|{moves}|cvt\.rn\.f64\.s64"
    return [one for one in floats if not re.fullmatch(plain, one)]


def test_no_step_is_fused_though_the_compiler_may():
    macros = classify_plan(Classifier(np.zeros(9), 1, 1, 0, np.zeros(1, np.uint8), 1, True, True), (0, 1, 0, 1), 1)
    macros, text = macros.launches[0].macros, plans.source_of("classify.cu")
    assert fused(text, macros) == []
    step = "return __dadd_rn(a, b); }"
    assert text.count(step) == 1
    assert fused(text.replace(step, "return a + b; }").replace("return __dmul_rn(a, b); }", "return a * b; }"), macros)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("all > best", "all >= best"),
        ("weight != 0 ?", "true ?"),
        ("j <= r", "j < r"),
        ("-offsets[", "offsets["),
        ("shift = 1.5 * 4503599627370496.0", "shift = 1.5 * 2251799813685248.0"),
        ("times(k, 1.90821492927058770002e-10)", "0.0"),
        ("feature + features * blockDim.x", "feature + blockDim.x"),
    ],
)
def test_a_planted_fault_is_found(old, new):
    weights, stack = example(5, 4, True)
    weights[2][1] -= 1000  # far beyond what an exponential holds
    values = np.arange(4).astype(np.uint16)
    text = plans.source_of("classify.cu")
    assert text.count(old) == 1
    if old == "weight != 0 ?":
        weights[0][:, 0], weights[3][:, :, 0] = np.inf, 0  # a weight of 0 leaves it out
    expected = [naive(x, 2**8, *weights) for x in stack.T]
    try:
        buffers, _ = run(weights, stack, values, text.replace(old, new))
    except EmulationError:
        return
    wrong = buffers["labels"].tolist() != [place for place, _ in expected]
    chances = np.array([chances_of for _, chances_of in expected], np.float32)
    assert wrong or buffers["chances"].reshape(4, -1).T.tobytes() != chances.tobytes()


@pytest.mark.soak
def test_a_voxel_beyond_the_last_is_found_by_asan():
    weights, stack = example(5, 4, True)
    text, values = plans.source_of("classify.cu"), np.arange(4).astype(np.uint16)
    run(weights, stack, values, text, mode="asan")
    with pytest.raises(EmulationError, match=r"heap-buffer-overflow|SEGV"):
        run(weights, stack, values, text.replace("if (at >= voxels) return;", ""), mode="asan")


def test_the_exponential_is_nearly_the_true_one():
    for value in np.linspace(-700, 0, 300).tolist():
        assert math.isclose(exponential(value), math.exp(value), rel_tol=4e-16)
