"""Golden cases of the metrics: distances, streamed moments, resizes, the Inception network, scores from features."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from harness import Array, Case, Runner

from repro.metrics.frechet import frechet_distance, trace_sqrt
from repro.metrics.inception import LAYERS, from_state
from repro.metrics.inception_score import inception_score, inception_score_adm
from repro.metrics.kernel import gaussian, kernel_distance, polynomial
from repro.metrics.manifold import precision_recall, squared_radii
from repro.metrics.moments import StreamedMoments
from repro.metrics.quantise import rounded
from repro.metrics.resize import INCEPTION_INPUTS, resize_clean, resize_legacy_pytorch, resize_tf1


def moments_of(features: Array) -> StreamedMoments:
    moments = StreamedMoments()
    moments.update(features)
    return moments


def distance_of(first: Array, second: Array) -> float:
    a, b = moments_of(first), moments_of(second)
    return frechet_distance(a.mean, a.covariance, b.mean, b.covariance)


def information(case: Case, *names: str) -> None:
    """Outputs that the case calls information, not targets."""
    case.compared |= {name for name in names if name in case.outputs}


def run_distances(case: Case) -> None:
    if "in/mu1_0" not in case.arrays:
        return run_edm2_distance(case)
    pairs = sum(name.startswith("in/mu1_") for name in case.arrays)
    get = case.arrays.__getitem__
    args = [[get(f"in/{name}_{i}") for name in ("mu1", "sigma1", "mu2", "sigma2")] for i in range(pairs)]
    found = np.array([frechet_distance(*pair) for pair in args])
    case.check("fd", found)
    limit = case.meta["tolerance"]
    for value, expected in zip(found, case.arrays["out/fd"], strict=True):
        assert abs(value - expected) <= limit * max(abs(expected), 1 if limit >= 1e-6 else 0)
    case.check("trace_sqrt", np.array([trace_sqrt(s1, s2) for _, s1, _, s2 in args]))
    information(case, "fd_torch_fidelity", "fd_clean_fid")


def run_edm2_distance(case: Case) -> None:
    """EDM2's and U-DiT's cases of the same name start from features."""
    names = ("feat_gen", "feat_ref") if "in/feat_gen" in case.arrays else ("features_sample", "features_ref")
    ours, reference = (moments_of(case.arrays[f"in/{name}"]) for name in names)
    suffix, fd = ("_gen", "fd") if names[0] == "feat_gen" else ("", "fid")
    case.check(f"mu{suffix}", ours.mean)
    case.check(f"sigma{suffix}", ours.covariance)
    value = frechet_distance(ours.mean, ours.covariance, reference.mean, reference.covariance)
    case.check(fd, np.full(case.arrays[f"out/{fd}"].shape, value))


def run_scalelong_distance(case: Case) -> None:
    value = frechet_distance(*(case.arrays[f"in/{name}"] for name in ("mu1", "sigma1", "mu2", "sigma2")))
    case.check("fid", value)


def kernel_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """torch-fidelity's arguments as ours, with its defaults."""
    if settings.get("kid_kernel", "poly") == "rbf":
        kernel = gaussian(settings.get("kid_kernel_rbf_sigma", 10.0))
    else:
        kernel = polynomial(
            settings.get("kid_kernel_poly_degree", 3),
            settings.get("kid_kernel_poly_gamma"),
            settings.get("kid_kernel_poly_coef0", 1.0),
        )
    return {
        "kernel": kernel,
        "subsets": settings.get("kid_subsets", 100),
        "subset_size": settings.get("kid_subset_size", 1000),
        "seed": settings.get("rng_seed", 2020),
    }


def run_features(case: Case) -> None:
    config = case.meta["config"]
    generated, real = case.arrays["in/features_1"], case.arrays["in/features_2"]
    moments = moments_of(generated)
    case.check("mu1", moments.mean)
    case.check("sigma1", moments.covariance)
    value = distance_of(generated, real)
    full_rank = min(len(generated), len(real)) > generated.shape[1]
    case.check("fd_float64", value, tolerance=1e-8 if full_rank else 1e-6)
    case.check("fd_torch_fidelity", value)
    scores = [kernel_distance(generated, real, **kernel_settings(settings)) for settings in config["kid"]]
    pairs = np.array([(score.mean, score.std) for score in scores])
    case.check("kid_float64", pairs, tolerance=1e-9)
    information(case, "kid")
    assert np.abs(pairs - case.arrays["out/kid"]).max() < 2e-6
    near = [precision_recall(generated, real, k) for k in config["prc_neighborhood"]]
    case.check("prc", np.array([(p.precision, p.recall, p.f_score) for p in near]), tolerance=1e-7)
    logits = case.arrays["in/logits"]
    names = {"isc_splits": "splits", "samples_shuffle": "shuffle", "rng_seed": "seed"}
    case.check(
        "isc", np.array([inception_score(logits, **{names[k]: v for k, v in one.items()}) for one in config["isc"]])
    )


def run_stream(case: Case) -> None:
    """Every chunk size dealt round-robin over every world size, merged in rank order and in the reverse one."""
    features, config = case.arrays["in/features"], case.meta["config"]
    found = []
    for world in config["world_sizes"]:
        ranks = [StreamedMoments() for _ in range(world)]
        start = batch = 0
        while start < len(features):
            size = config["chunks"][batch % len(config["chunks"])]
            ranks[batch % world].update(features[start : start + size])
            start, batch = start + size, batch + 1
        for order in (ranks, ranks[::-1]):
            merged = StreamedMoments()
            for rank in order:
                merged.merge(rank)
            case.check("mu", merged.mean)
            case.check("sigma", merged.covariance)
            found.append((merged.exact, merged.mean, merged.covariance))
    for exact, mean, covariance in found[1:]:
        if exact:
            assert np.array_equal(mean, found[0][1]) and np.array_equal(covariance, found[0][2])
        np.testing.assert_allclose(covariance, found[0][2], rtol=0, atol=1e-12 * np.abs(covariance).max())


def run_resize(case: Case) -> None:
    images = case.input("images").to(torch.uint8)
    rows, columns = (slice(*case.meta["config"][name]) for name in ("rows", "cols"))
    for name, resize in (
        ("clean", resize_clean),
        ("legacy_pytorch", resize_legacy_pytorch),
        ("tf1_bilinear", resize_tf1),
    ):
        whole = resize(images)
        case.check(name, whole[:, :, rows, columns])
        if f"{name}_mean" in case.outputs:
            case.check(f"{name}_mean", whole.double().mean(dim=(2, 3)))
            case.check(f"{name}_sqmean", whole.double().square().mean(dim=(2, 3)))
    information(case, "pil_bicubic_uint8")


def run_inception(case: Case) -> None:
    state = case.state()
    network = from_state(state)
    assert list(network.state_dict()) == list(state)
    assert sum(p.numel() for p in network.parameters()) == case.meta["num_params"]
    images = case.input("images").to(torch.uint8)
    with torch.no_grad():
        for protocol, (resize, scale) in INCEPTION_INPUTS.items():
            found = network(scale(resize(images)), LAYERS if protocol == "tf1" else ("2048",))
            if protocol != "tf1":
                case.check(f"feat_2048_{protocol}", found["2048"])
                continue
            case.check("sfid", found.pop("spatial"))
            for name, value in found.items():
                case.check(f"feat_{name}", value)


def run_adm_score(case: Case) -> None:
    logits = case.arrays["in/features"].astype(np.float64) @ case.arrays["in/weight"].astype(np.float64)
    case.check("is", inception_score_adm(logits, case.meta["config"]["split_size"]))


def run_adm_manifold(case: Case) -> None:
    reference, sample = (case.arrays[f"in/features_{name}"].astype(np.float64) for name in ("ref", "sample"))
    case.check("radii_ref", squared_radii(reference, 3)[:, None])
    case.check("radii_sample", squared_radii(sample, 3)[:, None])
    found = precision_recall(sample, reference, 3, rows=7)
    case.check("precision", np.array([found.precision]))
    case.check("recall", np.array([found.recall]))


def run_rounding(case: Case) -> None:
    case.check("u8", rounded(case.input("x"))[0].permute(1, 2, 0))


RUNNERS: dict[tuple[str, str], Runner] = {
    ("metric", "frechet_distance"): run_distances,
    ("metric", "calculate_frechet_distance"): run_scalelong_distance,
    ("metric", "fid, kid, precision/recall, inception score of torch-fidelity 0.4.0 from features"): run_features,
    ("metric", "streaming mean and covariance"): run_stream,
    ("metric", "resize to 299x299 before Inception"): run_resize,
    ("metric", "inception_score"): run_adm_score,
    ("metric", "prec_recall"): run_adm_manifold,
    ("metric", "unpreprocess + save_image"): run_rounding,
    ("network", "FID Inception-v3 (TF 2015-12-05 variant)"): run_inception,
}
