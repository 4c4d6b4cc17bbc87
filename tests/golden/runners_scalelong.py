"""Golden cases of ScaleLong: networks with scaled skips, the diffusion, its samplers, training steps, stability."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from harness import Case, RecordedDraws, RecordedNoise, Runner, seeded_value
from torch import Tensor, nn

from repro import importers
from repro.diffusion.vp_losses import NoiseLoss, diffuse
from repro.diffusion.vp_samplers import (
    Solver,
    boundaries,
    dpm_solver_sampler,
    dpmpp_sampler,
    euler_maruyama_sampler,
    fast_orders,
)
from repro.diffusion.vp_sde import DiscreteBetas, LinearSDE, Schedule, VPDenoiser, expand
from repro.importers import scalelong
from repro.models.skips import Gate, LongSkips
from repro.models.uvit import UViT
from repro.results import stability
from repro.training import ema
from repro.training.ema import ConstantEMA
from repro.training.optimizers import AdamW
from repro.training.schedules import LinearRampup
from repro.training.step import MicroBatch, training_step
from repro.training.weights import FlatWeights


class Analytic(nn.Module):
    """The cases' network: (0.25 + 0.6 tau) x + 0.1 sin(3 x) + 0.05 y, tau from 0 to 1; classes are one-hot."""

    img_resolution, in_channels = 4, 3

    def __init__(self, unit: float, label_dim: int = 0) -> None:
        super().__init__()
        self.unit = unit
        self.label_dim = label_dim

    def forward(self, x: Tensor, tau: Tensor, condition: Tensor | None = None) -> Tensor:
        eps = (0.25 + 0.6 * expand(tau / self.unit, x)) * x + 0.1 * torch.sin(3 * x)
        return eps if condition is None else eps + 0.05 * expand(condition.argmax(1), x)


class Exact(VPDenoiser):
    """A denoiser that stays in float64, and remembers its times."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.times: list[float] = []

    def raw(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        self.times.append(float(t[0]))
        output: Tensor = self.model(x, t.expand(len(x)) * self.process.time_factor, condition)
        return output


class Guided(Exact):
    """Conditional and unconditional predictions of the second package's guided cases."""

    has_null_class = True

    def raw(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        assert condition is not None
        shift = torch.where(condition.any(1), 0.05, -0.02)
        return super().raw(x, t, None) + expand(shift, x)


def one_hot(case: Case) -> Tensor | None:
    y = case.optional("y")
    return None if y is None else nn.functional.one_hot(y, int(y.max()) + 1).float()


def label_dim(case: Case) -> int:
    labels = one_hot(case)
    return 0 if labels is None else labels.shape[1]


def analytic(case: Case, kind: type[VPDenoiser] = VPDenoiser) -> Any:
    target = "x0" if case.config.get("pred") == "x0_pred" else "noise"
    return kind(Analytic(999, label_dim(case)), target=target)


@torch.no_grad()
def run_network(case: Case) -> None:
    state = case.state()
    net = importers.build("scalelong", case.meta["name"], case.config, state)
    assert isinstance(net, UViT)
    assert list(net.state_dict()) == list(state), "keys in another order than published"
    assert sum(p.numel() for p in net.parameters()) == case.meta["num_params"]
    watch = stability.Watch(net)
    condition = case.optional("context" if "in/context" in case.arrays else "y")
    with watch:
        case.check("eps", net(case.input("x"), case.input("timesteps"), condition))
    found = {
        "dec_norm": torch.stack(watch.decoder_norms),
        "skip_norm": torch.stack(watch.encoder_norms[: net.count]),
        "coef": torch.stack(watch.gates) if watch.gates else torch.empty(0),
    }
    for name in sorted(case.outputs - {"eps"}):
        case.check(name, found[name])


@torch.no_grad()
def run_gate(case: Case) -> None:
    gate = Gate(case.config["dim"], case.config["dim"] // case.config.get("r", 16))
    state = case.state()
    assert list(gate.state_dict()) == list(state)
    gate.load_state_dict(state)
    assert sum(p.numel() for p in gate.parameters()) == case.meta["num_params"]
    case.check("coef", gate(case.input("tokens").mean(2))[:, :, None])


def run_sde(case: Case) -> None:
    sde = LinearSDE(**case.config)
    t, x0 = case.input("t").double(), case.input("x0")
    half = t / 2
    found = {
        "beta": sde.beta(t),
        "integral": sde.integral(0.0, t),
        "diffusion": sde.beta(t).sqrt(),
        "drift": -expand(sde.beta(t), x0) * x0 / 2,
        "cum_alpha": sde.alpha(t) ** 2,
        "cum_beta": sde.sigma(t) ** 2,
        "nsr": sde.nsr(t),
        "snr": 1 / sde.nsr(t),
        "mean": expand(sde.alpha(t), x0) * x0,
        "std": sde.sigma(t),
        "skip_alpha": (-sde.integral(half, t)).exp(),
        "skip_beta": -torch.expm1(-sde.integral(half, t)),
    }
    for name in sorted(case.outputs):
        case.check(name, found[name.removesuffix("_exact")])


def schedule_of(case: Case) -> Schedule:
    if case.config["schedule"] == "linear":
        return LinearSDE()
    return DiscreteBetas(case.input("betas").double() if "in/betas" in case.arrays else None)


def run_schedule(case: Case) -> None:
    schedule = schedule_of(case)
    t = case.input("t").double()
    lam = schedule.half_log_snr(t)
    found = {
        "log_alpha": schedule.log_alpha(t),
        "sigma": schedule.sigma(t),
        "lam": lam,
        "t_back": schedule.inverse_lambda(lam),
    }
    for name in sorted(case.outputs):
        exact = name.endswith("_exact")
        case.check(name, found[name.removesuffix("_exact")], case.meta["tolerance_exact"] if exact else None)


def run_discrete_schedule(case: Case) -> None:
    given = {"linear_start": 0.00085, "linear_end": 0.012, "n_timestep": 1000, **case.config}
    ends = (math.sqrt(given[key]) for key in ("linear_start", "linear_end"))
    schedule = DiscreteBetas(torch.linspace(*ends, given["n_timestep"], dtype=torch.float64) ** 2)
    t = case.input("n").double() / schedule.steps
    net = VPDenoiser(Analytic(schedule.steps), "stable-diffusion")
    net.process = schedule
    case.check("betas", schedule.betas)
    case.check("cum_alphas", schedule.alpha(t) ** 2)
    case.check("cum_betas", schedule.sigma(t) ** 2)
    case.check("xn", diffuse(net, case.input("x0"), t, case.input("noise")))


def run_loss(case: Case) -> None:
    net = analytic(case)
    x0, u, noise = (case.input(name) for name in ("x0", "u", "noise"))
    draws = RecordedDraws([("time", "rand", u), ("noise", "randn", noise)])
    case.check("loss", NoiseLoss()(net, x0, one_hot(case), draws=draws))
    draws.finish()
    t = u.double()
    xt = diffuse(net, x0, t, noise)
    eps = net(xt, t, one_hot(case))
    alpha, sigma = expand(net.process.alpha(t), xt), expand(net.process.sigma(t), xt)
    found = {"t": t, "xt": xt, "noise_pred": eps, "x0_pred": (xt - sigma * eps) / alpha, "score": -eps / sigma}
    for name in sorted(case.outputs - {"loss"}):
        case.check(name, found[name])


def run_euler(case: Case) -> None:
    config = case.config
    assert config["T"] == 1
    noise = RecordedNoise(case.optional("noise"))
    settings = {"num_steps": config["sample_steps"], "kind": config["kind"], "t_min": config["eps"]}
    for kind, name in ((VPDenoiser, "x"), (Exact, "x_exact")):
        noise.calls = 0
        case.check(
            name, euler_maruyama_sampler(analytic(case, kind), case.input("x_init"), one_hot(case), noise, **settings)
        )
        assert noise.calls == (config["sample_steps"] - 1 if config["kind"] == "sde" else 0)
    if "trace" in case.outputs:
        case.check("trace", euler_trace(case, settings))


def euler_trace(case: Case, settings: dict[str, Any]) -> Tensor:
    """States after the steps that the case's description lists, seen by the network and at the end."""
    seen: list[Tensor] = []
    net = analytic(case)
    forward = net.forward

    def watched(x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        seen.append(x)
        predicted: Tensor = forward(x, t, condition)
        return predicted

    net.forward = watched
    noise = RecordedNoise(case.optional("noise"))
    seen.append(euler_maruyama_sampler(net, case.input("x_init"), one_hot(case), noise, **settings))
    text = case.meta["outputs"]["trace"]
    return torch.stack([seen[int(i)] for i in text[text.index("[") + 1 : text.index("]")].split(",")])


def run_dpm_solver(case: Case) -> None:
    config = case.config
    settings: dict[str, Any] = {"t_end": config["eps"], "evaluations": config["steps"]}
    if config.get("adaptive_step_size"):
        settings |= {"method": "adaptive", "order": config.get("order", 3)}
    elif not config.get("fast_version"):
        settings |= {"method": "singlestep", "order": config.get("order", 3)}
    if "skip_type" in config:
        settings["spacing"] = {"logSNR": "lambda", "time_uniform": "time"}[config["skip_type"]]
    x, labels = case.input("x_init"), one_hot(case)
    case.check("x", dpm_solver_sampler(analytic(case), x, labels, **settings))
    exact = analytic(case, Exact)
    limit = case.meta["tolerance_exact"]
    case.check("x_exact", dpm_solver_sampler(exact, x, labels, **settings), limit)
    if "model_times" in case.outputs:
        case.check("model_times", np.array(exact.times), limit)
    if "orders" in case.outputs:
        orders = fast_orders(config["steps"])
        case.check("orders", np.array(orders))
        times = boundaries(LinearSDE(), 1.0, config["eps"], len(orders), settings.get("spacing", "lambda"), "cpu")
        case.check("step_times", times, limit)
        case.check("step_times_f32", times)


def run_updates(case: Case) -> None:
    config, net = case.config, analytic(case)
    solver = Solver(net.process, lambda x, t: net(x, t))
    x, s, t = (case.input(name).double() for name in ("x", "s", "t"))
    shares = {1: [], 2: [config["r1_order2"]], 3: [config["r1_order3"], config["r2_order3"]]}
    for order, inner in shares.items():
        times = [s, *(solver.between(s, t, share) for share in inner), t]
        case.check(f"order{order}", solver.step(x, times))


def run_second_package(case: Case) -> None:
    config = case.config
    assert config["T"] == 1.0 and not config["thresholding"]
    guidance = config["guidance"] or 0.0
    settings: dict[str, Any] = {"evaluations": config["steps"], "t_end": config["eps"], "guidance": guidance}
    settings["data_prediction"] = config["predict_x0"]
    settings |= {key: config[key] for key in ("order", "method") if key in config}
    if "skip_type" in config:
        settings["spacing"] = {"logSNR": "lambda", "time_uniform": "time"}[config["skip_type"]]
    x = case.input("x_init")
    labels = torch.ones(len(x), 1) if guidance else None
    schedule: Any = {"discrete": "stable-diffusion", "linear": "linear"}[config["schedule"]]
    unit = 1000 if config["schedule"] == "discrete" else 999
    kind: Any = Guided if guidance else Exact
    exact = kind(Analytic(unit), schedule)
    found = dpmpp_sampler(exact, x, labels, **settings)
    limit = case.meta["tolerance_exact"]
    case.check("x", found)
    case.check("x_exact", found, limit)
    if "model_times" in case.outputs:
        case.check("model_times", np.array(exact.times), limit)


def run_training_steps(case: Case) -> None:
    config = case.meta["config"]
    net = importers.build("scalelong", "UViT", config["net"], case.state()).train()
    assert sum(p.numel() for p in net.parameters()) == case.meta["num_params"]
    denoiser = VPDenoiser(net)
    parameters = dict(net.named_parameters())
    start = {name: p.detach().clone() for name, p in parameters.items()}
    weights = FlatWeights(denoiser)
    average = weights.vector.detach().clone()
    rule = config["optimizer"]
    assert rule["name"] == "adamw"
    optimizer = AdamW(rule["betas"], weight_decay=rule["weight_decay"]).create(weights.vector)
    batch = case.input("x0").shape[1]
    rate = LinearRampup(rule["lr"], config["warmup_steps"] * batch)
    profile = ConstantEMA(batch / (1 - config["ema_rate"]))
    losses, rates, norms = [], [], []
    recorded: list[Tensor] = []

    def loss(*args: Any, **kwargs: Any) -> Tensor:
        values = NoiseLoss()(*args, **kwargs)
        recorded.append(values.detach())
        return values

    for step in range(config["steps"]):
        draws = RecordedDraws([("time", "rand", case.input("u")[step]), ("noise", "randn", case.input("noise")[step])])
        labels = None
        if "in/y" in case.arrays:
            labels = nn.functional.one_hot(case.input("y")[step], config["net"]["num_classes"]).float()
        rates.append(rate(step * batch))
        parts = [MicroBatch(case.input("x0")[step], labels, draws)]
        result = training_step(denoiser, loss, weights, optimizer, parts, lr=rates[-1], batch=batch)
        ema.update(average, weights.vector, profile.beta(step * batch, batch))
        losses.append(recorded[-1])
        norms.append(result.grad_norm)
    averages = dict(zip(parameters, weights.split(average), strict=True))
    limit = case.meta["tolerance_loss"]
    case.check("loss", torch.stack(losses), limit)
    case.check("lr_used", np.array(rates), limit)
    case.check("grad_norm", np.array(norms), limit)
    for name in sorted(case.outputs):
        which, _, key = name.partition("/")
        if key:
            now = parameters[key].detach() if which == "delta" else averages[key]
            case.check(name, now - start[key])


def run_stability(case: Case) -> None:
    config = case.meta["config"]
    x, tau, delta, target = (case.input(name) for name in ("x", "timesteps", "delta", "target"))
    for variant, options in config["variants"].items():
        net = scalelong.describe("UViT", {**config["net"], **options}).build()
        assert isinstance(net, UViT)
        state = {key: torch.from_numpy(seeded_value(key, value.shape)) for key, value in net.state_dict().items()}
        net.load_state_dict(state)
        condition = next((case.input(name) for name in ("y", "context") if f"in/{name}" in case.arrays), None)
        probe = stability.Probe(x, tau, target, delta, condition)
        found = stability.measure(net.eval(), probe)
        case.check(f"{variant}/dec_norm", found.decoder_norms)
        case.check(f"{variant}/loss", found.loss)
        case.check(f"{variant}/block_grad_norm", found.block_gradients)
        case.check(f"{variant}/grad_norm", found.gradient)
        case.check(f"{variant}/gain", found.gain, case.meta["tolerance_gain"])
        assert net.se is None or isinstance(net.se, LongSkips)


RUNNERS: dict[tuple[str, str], Runner] = {
    ("network", "UViT"): run_network,
    ("network", "UViT (text-conditional variant)"): run_network,
    ("network", "Attentionlayer"): run_gate,
    ("schedule", "VPSDE"): run_sde,
    ("schedule", "NoiseScheduleVP"): run_schedule,
    ("schedule", "stable_diffusion_beta_schedule + Schedule"): run_discrete_schedule,
    ("loss", "LSimple"): run_loss,
    ("loss", "training step (LSimple, AdamW, warm-up, EMA)"): run_training_steps,
    ("sampler", "euler_maruyama"): run_euler,
    ("sampler", "DPM_Solver (first package)"): run_dpm_solver,
    ("sampler", "dpm_solver_update"): run_updates,
    ("sampler", "DPM_Solver (second package, data prediction)"): run_second_package,
    ("sampler", "DPM_Solver (second package)"): run_second_package,
    ("sampler", "DPM_Solver (second package, noise prediction)"): run_second_package,
    ("metric", "stability quantities"): run_stability,
}
