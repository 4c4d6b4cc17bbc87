"""Golden cases of EDM2: primitives, blocks, networks, loss, training, post-hoc EMA and guided sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import runners_network
import runners_sampler
import torch
from harness import Case, RecordedDraws, RecordedNoise, Runner
from torch import Tensor, nn

from repro import importers
from repro.diffusion.draws import StackedGenerator
from repro.diffusion.edm2 import EDM2Precond, UncertaintyLoss
from repro.diffusion.guidance import edm2_sampler
from repro.models import edm2_layers
from repro.models.edm2 import Block, BlockOptions, EDM2UNet
from repro.models.edm2_layers import MPConv, MPFourier
from repro.training import ema, posthoc, power_profile
from repro.training.ema import PowerEMA, TraditionalEMA
from repro.training.optimizers import Adam
from repro.training.schedules import InverseSqrtDecay
from repro.training.step import MicroBatch, training_step
from repro.training.weights import FlatWeights

PRIMITIVES: dict[str, tuple[Callable[..., Tensor], str]] = {
    "normalize": (edm2_layers.normalize, "x"),
    "resample": (edm2_layers.resample, "x"),
    "mp_silu": (edm2_layers.mp_silu, "x"),
    "mp_sum": (edm2_layers.mp_sum, "ab"),
    "mp_cat": (edm2_layers.mp_cat, "ab"),
}


def settings(case: Case) -> dict[str, Any]:
    """What was done, beside the arguments: the keys of `config` that start with an underscore, without it."""
    return {key[1:]: value for key, value in case.meta["config"].items() if key.startswith("_")}


def load(case: Case, module: nn.Module) -> None:
    """The case's weights, whose keys, order and number must be the module's."""
    state = case.state()
    assert list(module.state_dict()) == list(state), "keys in another order than published"
    assert sum(p.numel() for p in module.parameters()) == case.meta["num_params"]
    module.load_state_dict(state)


def network(case: Case, name: str, config: dict[str, Any]) -> nn.Module:
    """A network built by the importer; its keys, their order and its size are those published."""
    state = case.state()
    net = importers.build("edm2", name, config, state)
    assert list(net.state_dict()) == list(state), "keys in another order than published"
    assert sum(p.numel() for p in net.parameters()) == case.meta["num_params"]
    return net


def run_primitive(case: Case) -> None:
    function, inputs = PRIMITIVES[case.meta["name"]]
    case.check("y", function(*(case.input(name) for name in inputs), **case.config))


def run_fourier(case: Case) -> None:
    module = MPFourier(**case.config)
    load(case, module)
    case.check("y", module(case.input("x")))


def run_conv(case: Case) -> None:
    done = settings(case)
    config = case.config
    kernel = config.pop("kernel")
    assert len(set(kernel)) <= 1
    module = MPConv(**config, kernel=kernel[0] if kernel else 0)
    load(case, module)
    if done["mode"] == "eval":
        before = module.weight.clone()
        case.check("y", module.eval()(case.input("x"), done["gain"]))
        assert torch.equal(module.weight, before)
        return
    x, gain = case.input("x").requires_grad_(), torch.tensor(float(done["gain"]), requires_grad=True)
    y = module.train()(x, gain)
    case.check("y", y)
    case.check("weight_after", module.weight.clone())
    torch.autograd.backward((y * case.input("dy")).sum())
    case.check("grad_weight", _gradient(module.weight))
    case.check("grad_x", _gradient(x))
    case.check("grad_gain", _gradient(gain).reshape(1))
    case.check("y2", module(x, gain))
    case.check("weight_after2", module.weight)


def _gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def make_block(config: dict[str, Any]) -> Block:
    """A block from the published arguments."""
    arguments = dict(config)
    own = {"in_channels": arguments.pop("in_channels"), "out_channels": arguments.pop("out_channels")}
    own["decoder"] = arguments.pop("flavor", "enc") == "dec"
    own["mode"] = arguments.pop("resample_mode", "keep")
    own["attention"] = arguments.pop("attention", False)
    return Block(**own, options=BlockOptions(**arguments))


def run_block(case: Case) -> None:
    done = settings(case)
    block = make_block(case.config)
    load(case, block)
    x, emb = case.input("x").requires_grad_(), case.input("emb").requires_grad_()
    y = block.train(done.get("mode") == "train")(x, emb)
    case.check("y", y)
    if done.get("mode") != "train":
        return
    torch.autograd.backward((y * case.input("dy")).sum())
    case.check("grad_x", _gradient(x))
    case.check("grad_emb", _gradient(emb))
    parameters = dict(block.named_parameters())
    for name in sorted(case.outputs - {"y", "grad_x", "grad_emb"}):
        if name == "grad_emb_gain":
            case.check(name, _gradient(parameters["emb_gain"]).reshape(1))
        elif name.startswith("grad_"):
            case.check(name, _gradient(parameters[name.removeprefix("grad_")]))
        elif name.startswith("weight_after_"):
            case.check(name, parameters[f"{name.removeprefix('weight_after_')}.weight"])


@torch.no_grad()
def run_unet(case: Case) -> None:
    net = network(case, "UNet", case.config)
    case.check("F_x", net(case.input("x"), case.input("noise_labels"), case.optional("class_labels")))


@torch.no_grad()
def run_precond(case: Case) -> None:
    net = network(case, "Precond", case.config)
    denoised, logvar = net(case.input("x"), case.input("sigma"), case.optional("class_labels"), return_logvar=True)
    case.check("D_x", denoised)
    case.check("logvar", logvar)
    again = net(case.input("x"), case.input("sigma"), case.optional("class_labels"))
    assert torch.equal(again, denoised)


@torch.no_grad()
def run_adm(case: Case) -> None:
    """Configurations A and B are EDM's ADM network with 4 image channels; other cases of the name are EDM's own."""
    if "D_x" not in case.outputs:
        runners_network.run_precond(case)
        return
    case.check("D_x", case.network()(case.input("x"), case.input("sigma"), case.optional("class_labels")))


def run_param_counts(case: Case) -> None:
    counts = []
    for config in case.config["models"]:
        with torch.device("meta"):
            net = EDM2Precond(EDM2UNet(**config))
        counts.append(sum(p.numel() for p in net.parameters()))
    case.check("num_params", torch.tensor(counts))


def run_loss(case: Case) -> None:
    config = case.meta["config"]
    net = network(case, "Precond", config["net"]).train()
    draws = RecordedDraws([("sigma", "randn", case.input("rnd_normal")), ("noise", "randn", case.input("noise"))])
    error = UncertaintyLoss(**config["loss"])(net, case.input("images"), case.input("labels"), draws=draws)
    draws.finish()
    objective = error.sum() * (config["loss_scaling"] / len(error))
    torch.autograd.backward(objective)
    case.check("loss", error)
    case.check("objective", objective.reshape(1))
    parameters = dict(net.named_parameters())
    for name in sorted(case.outputs - {"loss", "objective"}):
        kind, _, key = name.partition(":")
        assert kind in ("grad", "after")
        case.check(name, _gradient(parameters[key]) if kind == "grad" else parameters[key])


def run_training_steps(case: Case) -> None:
    """Whole steps as specified: forced normalisation within the forward pass, rate before, averages after the step."""
    config = case.meta["config"]
    net = network(case, "Precond", config["net"]).train()
    weights = FlatWeights(net)
    optimizer = Adam(betas=(0.9, 0.99)).create(weights.vector)
    batch = config["batch_size"]
    rate = make_rate(batch_size=batch, **config["lr"])
    profiles = [PowerEMA(std) for std in config["ema_stds"]]
    averages = [weights.vector.detach().clone() for _ in profiles]
    loss, rates, losses = UncertaintyLoss(**config["loss"]), [], []
    for step in range(config["steps"]):
        nimg = config["start_nimg"] + step * batch
        normal, noise = case.input("rnd_normal")[step], case.input("noise")[step]
        draws = RecordedDraws([("sigma", "randn", normal), ("noise", "randn", noise)])
        part = MicroBatch(case.input("images")[step], case.input("labels")[step], draws)
        rates.append(rate(nimg))
        result = training_step(
            net, loss, weights, optimizer, [part], lr=rates[-1], batch=batch, loss_scale=config["loss_scaling"]
        )
        losses += result.parts
        for profile, average in zip(profiles, averages, strict=True):
            ema.update(average, weights.vector, profile.beta(nimg, batch))
    case.check("lr", torch.tensor(rates, dtype=torch.float64), tolerance=1e-9)
    case.check("loss_mean", torch.tensor(losses))
    names = [name for name, _ in net.named_parameters()]
    found = {"w": dict(zip(names, weights.split(weights.vector.detach()), strict=True))}
    for profile, average in zip(profiles, averages, strict=True):
        found[f"ema{profile.std:.3f}"] = dict(zip(names, weights.split(average), strict=True))
    for name in sorted(case.outputs - {"lr", "loss_mean"}):
        kind, _, key = name.partition(":")
        case.check(name, found[kind][key])


def make_rate(batch_size: int, ref_lr: float, ref_batches: float, rampup_Mimg: float) -> InverseSqrtDecay:
    """The schedule from the published arguments: decay in steps, ramp in millions of images."""
    rate = InverseSqrtDecay(ref_lr)
    rate.decay_nimg, rate.rampup_nimg = ref_batches * batch_size, rampup_Mimg * 1e6
    return rate


def run_schedule(case: Case) -> None:
    counts = case.input("cur_nimg").tolist()
    rates = [[make_rate(**row)(n) for n in counts] for row in case.config["rows"]]
    case.check("lr", torch.tensor(rates, dtype=torch.float64))


def run_ema_tables(case: Case) -> None:
    gammas = [power_profile.gamma_from_std(std) for std in case.arrays["in/std"].tolist()]
    steps = list(zip(case.arrays["in/t_next"].tolist(), case.arrays["in/t_delta"].tolist(), strict=True))
    case.check("exp", np.array(gammas))
    case.check("std_back", np.array([power_profile.std_from_gamma(gamma) for gamma in gammas]))
    case.check("beta", np.array([[power_profile.power_beta(gamma, *step) for step in steps] for gamma in gammas]))


def run_ema_response(case: Case) -> None:
    profiles = zip(case.arrays["in/ofs"].tolist(), case.arrays["in/std"].tolist(), strict=True)
    length = case.config["len"]
    case.check("resp", np.stack([power_profile.response(std, ofs, length) for ofs, std in profiles], axis=1))


def run_ema_correlation(case: Case) -> None:
    (t_a, std_a), (t_b, std_b) = ((case.arrays[f"in/{k}_ofs"], case.arrays[f"in/{k}_std"]) for k in "ab")
    gamma_a, gamma_b = (np.array([power_profile.gamma_from_std(std) for std in stds]) for stds in (std_a, std_b))
    case.check("corr", power_profile.inner_products(t_a, gamma_a, t_b, gamma_b))


def run_ema_coefficients(case: Case) -> None:
    given = [case.arrays[f"in/{name}"] for name in ("in_ofs", "in_std", "out_ofs", "out_std")]
    case.check("coefs", power_profile.solve_coefficients(*given))


def run_ema_end_to_end(case: Case) -> None:
    """Weights, their tracked averages, and what is reconstructed from those; "direct" are averages of those widths."""
    config = case.config
    theta, batch, every = case.input("theta"), config["batch_size"], config["snapshot_every"]
    profiles = {std: PowerEMA(std) for std in [*config["stds"], *config["out_std"]]}
    averages = {std: theta[0].clone() for std in profiles}
    taken: list[tuple[int, float, Tensor]] = []
    for step in range(1, len(theta)):
        for std, profile in profiles.items():
            ema.update(averages[std], theta[step], profile.beta((step - 1) * batch, batch))
        if step % every == 0:
            taken += [(step * batch, std, averages[std].clone()) for std in config["stds"]]
    values = torch.stack([value for _, _, value in taken])
    times, stds = np.array([float(t) for t, _, _ in taken]), np.array([std for _, std, _ in taken])
    ends = np.full(len(config["out_std"]), times.max())
    matrix = power_profile.solve_coefficients(times, stds, ends, np.array(config["out_std"]))
    case.check("snapshots", values)
    case.check("snapshot_ofs", times)
    case.check("snapshot_std", stds)
    case.check("coefs", matrix)
    sums = posthoc.weighted_sums(({"theta": value} for value in values), matrix)
    case.check("reconstructed", torch.stack([total["theta"] for total in sums]))
    case.check("direct", torch.stack([averages[std] for std in config["out_std"]]))


def run_ema_traditional(case: Case) -> None:
    config = case.meta["config"]
    profile = TraditionalEMA(round(config["halflife_Mimg"] * 1e6), config["rampup_ratio"])
    theta, batch = case.input("theta"), config["batch_size"]
    average, found = theta[:1].clone(), []
    for step in range(1, len(theta)):
        ema.update(average, theta[step : step + 1], profile.beta((step - 1) * batch, batch))
        found.append(average.clone())
    case.check("ema", torch.cat(found))


class PeakDenoiser:
    """The denoiser of the sampler cases' note, in float32, for data at +-m, m a label's parameter; counts calls.

    means: (classes,) parameter of each class. labelled: whether labels are used, else the mean of all classes' is.
    """

    sigma_min = 0.0
    sigma_max = float("inf")

    def __init__(self, s: float, means: Tensor, labelled: bool) -> None:
        self.s = s
        self.means = means
        self.labelled = labelled
        self.calls = 0

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return sigma

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        assert x.dtype == sigma.dtype == torch.float32
        assert class_labels is not None
        self.calls += 1
        m = (class_labels @ self.means).reshape(-1, 1, 1, 1) if self.labelled else self.means.mean()
        total = sigma**2 + self.s**2
        return (self.s**2 * x + sigma**2 * m * torch.tanh(m * x / total)) / total


def run_sampler(case: Case) -> None:
    if "cases" in case.config:  # EDM's form of a case
        runners_sampler.run_sampler(case)
        return
    done = settings(case)
    main = PeakDenoiser(done["s"], case.input("m"), True)
    guide = PeakDenoiser(done["gs"], case.input("gm"), done["g_uses_labels"])
    noise = RecordedNoise(case.optional("churn_noise"))
    images = edm2_sampler(main, case.input("noise"), case.input("labels"), noise, guide=guide, **case.config)
    case.check("images", images)
    case.check("calls", torch.tensor([main.calls, guide.calls]))


def run_seeds(case: Case) -> None:
    if "next_noise" not in case.outputs:  # EDM's form of a case
        runners_sampler.run_seeds(case)
        return
    config = case.config
    generator = StackedGenerator(config["seeds"])
    shape = [len(config["seeds"]), *config["shape"]]
    case.check("noise", generator.randn(shape))
    case.check("labels", generator.randint(config["label_dim"]))
    case.check("next_noise", generator.randn(shape))


RUNNERS: dict[tuple[str, str], Runner] = {
    **{("network", name): run_primitive for name in PRIMITIVES},
    ("network", "MPFourier"): run_fourier,
    ("network", "MPConv"): run_conv,
    ("network", "Block"): run_block,
    ("network", "UNet"): run_unet,
    ("network", "param_counts"): run_param_counts,
    ("loss", "EDM2Loss"): run_loss,
    ("loss", "training_steps"): run_training_steps,
    ("schedule", "learning_rate_schedule"): run_schedule,
    ("ema", "power_function_tables"): run_ema_tables,
    ("ema", "power_function_response"): run_ema_response,
    ("ema", "power_function_correlation"): run_ema_correlation,
    ("ema", "solve_posthoc_coefficients"): run_ema_coefficients,
    ("ema", "posthoc_end_to_end"): run_ema_end_to_end,
    ("ema", "TraditionalEMA"): run_ema_traditional,
    ("sampler", "edm_sampler"): run_sampler,
    ("sampler", "StackedRandomGenerator"): run_seeds,
    ("precond", "Precond"): run_precond,
    ("precond", "EDMPrecond"): run_adm,
}
