"""What a row means: the classes that a Gin file can name, and what an experiment consists of."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from repro.config import register
from repro.data.sources import FFHQ, AFHQv2, CelebA, Cifar10, Coco, Digits, ImageFolder, ImageNet, Latents
from repro.data.stream import Dataset
from repro.diffusion.ablation import ablation_sampler
from repro.diffusion.discrete_denoiser import DiscreteDenoiser
from repro.diffusion.discrete_losses import HybridLoss
from repro.diffusion.discrete_samplers import ancestral_sampler, ddim_sampler
from repro.diffusion.edm2 import EDM2Precond, UncertaintyLoss
from repro.diffusion.guidance import edm2_sampler
from repro.diffusion.losses import EDMLoss, VELoss, VPLoss, iDDPMLoss
from repro.diffusion.precond import EDMPrecond, Precond, VEPrecond, VPPrecond, iDDPMPrecond
from repro.diffusion.rk45 import rk45_sampler
from repro.diffusion.samplers import edm_sampler
from repro.diffusion.vp_losses import NoiseLoss
from repro.diffusion.vp_samplers import dpm_solver_sampler, dpmpp_sampler, euler_maruyama_sampler
from repro.diffusion.vp_sde import VPDenoiser
from repro.errors import UsageError
from repro.metrics.protocols import (
    ADMProtocol,
    DigitsProtocol,
    DINOv2Protocol,
    InceptionProtocol,
    PytorchFIDProtocol,
)
from repro.models.adm import DhariwalUNet
from repro.models.ddpm import DDPMUNet
from repro.models.dit import DiT
from repro.models.edm2 import EDM2UNet
from repro.models.skips import ConstantScaling, InverseSqrt2Scaling, LearnableScaling
from repro.models.song import SongUNet
from repro.models.udit import UDiT
from repro.models.uvit import UViT
from repro.scale import Scale
from repro.selection import Selection
from repro.training.augment import AugmentPipe
from repro.training.ema import ConstantEMA, HalfLifeEMA, PowerEMA, TraditionalEMA
from repro.training.optimizers import Adam, AdamW
from repro.training.posthoc import PostHocEMA
from repro.training.schedules import ConstantRate, InverseSqrtDecay, LinearRampup
from repro.training.step import Reduction


@dataclasses.dataclass
class Trajectory:
    """One training run: all that decides the weights at step t.

    Args:
        data: the data set and how it is prepared.
        denoiser: preconditioned network, or a `DiscreteDenoiser` or `VPDenoiser`, of which loss and sampler know more.
        loss: weighted squared error a pixel, or one number an image.
        lr: learning rate as a function of images seen.
        batch: global batch in images.
        optimizer: update rule.
        augment: augmentation pipe, or None.
        loss_scale: factor of the objective, not divided out again.
        loss_reduction: how the error of one image becomes a number: `sum` over pixels (EDM), `mean` or `half_sum`
            (Song et al.).
        clip_norm: limit of the gradient's L2 norm, or None.
        infinite_gradient: what takes the place of an infinite entry of the gradient, with its sign.
        seed: training seed: initial weights, data order, noise, dropout. One seed is one replicate.
    """

    UNITS = {"batch": "batch"}
    NEUTRAL = {"infinite_gradient": 1e5}

    data: Dataset
    denoiser: Precond | DiscreteDenoiser | VPDenoiser
    loss: Callable[..., Any]
    lr: ConstantRate | InverseSqrtDecay | LinearRampup
    batch: int
    optimizer: Adam | AdamW
    augment: AugmentPipe | None = None
    loss_scale: float = 1.0
    loss_reduction: Reduction = "sum"
    clip_norm: float | None = None
    infinite_gradient: float = 1e5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UsageError(f"Trajectory.batch must be 1 or more, not {self.batch}")
        network = self.denoiser.model
        takes, gives = getattr(network, "augment_dim", 0), self.augment.label_dim if self.augment else 0
        if gives not in (0, takes):
            raise UsageError(
                f"the augmentation gives {gives} labels, but {type(network).__name__}.augment_dim is {takes}"
            )
        if self.denoiser.label_dim != self.data.label_dim:
            raise UsageError(
                f"the network takes {self.denoiser.label_dim} classes, the data have {self.data.label_dim}"
            )
        takes_text = getattr(self.denoiser, "context_shape", None) or (0, 0)
        gives_text = (self.data.context_tokens, self.data.context_dim)
        if takes_text != gives_text and (takes_text[0] or gives_text[0]):
            raise UsageError(f"the network takes texts of {takes_text} tokens and width, the data have {gives_text}")


@dataclasses.dataclass
class Preview:
    """How the candidates of a selection are scored, where it is not by the evaluation itself (U-ViT: FID of 10,000
    images by another sampler). The chosen candidate is then scored by the evaluation.

    Args:
        sampler: see `Evaluation`.
        num_samples: images a candidate; a protocol that insists on a number gets this one.
    """

    UNITS = {"num_samples": "samples"}

    sampler: Callable[..., Any]
    num_samples: int = 10_000


AnyEMA = PostHocEMA | PowerEMA | HalfLifeEMA | ConstantEMA


@dataclasses.dataclass
class Guide:
    """The network that guides another in sampling (classifier-free guidance, autoguidance): a training run of its own.

    Args:
        trajectory: its training. Its seed is the guided network's.
        ema: the average of its weights.
        milestone_nimg: where in its training, in images.
    """

    UNITS = {"milestone_nimg": "images"}

    trajectory: Trajectory
    ema: AnyEMA
    milestone_nimg: int

    def __post_init__(self) -> None:
        if self.milestone_nimg < 1:
            raise UsageError(f"Guide.milestone_nimg must be 1 or more, not {self.milestone_nimg}")


@dataclasses.dataclass
class Evaluation:
    """Sampling from the weights at a milestone and scoring the images.

    Args:
        ema: the average of the weights that is sampled from.
        sampler: (denoiser, latents, labels, randn_like, callback) -> images.
        protocol: how images become metrics, and how labels are chosen.
        selection: which milestones and ranges are candidates, and which one is the cell's value.
        num_samples: images a range.
        guide: the network that guides the sampler, or None.
        preview: how candidates are scored where not by this evaluation, which the chosen one alone then has.
        prompts: the data whose captions a text-conditional network draws, None without texts. The image of seed s
            follows a caption of image s modulo their number.
    """

    UNITS = {"protocol": "protocol", "num_samples": "samples"}
    NEUTRAL = {"guide": None, "preview": None, "prompts": None}

    ema: AnyEMA
    sampler: Callable[..., Any]
    protocol: DigitsProtocol | InceptionProtocol | PytorchFIDProtocol | ADMProtocol | DINOv2Protocol
    selection: Selection
    num_samples: int = 50_000
    guide: Guide | None = None
    preview: Preview | None = None
    prompts: Dataset | None = None

    def __post_init__(self) -> None:
        takes_guide = "guide" in inspect.signature(self.sampler).parameters
        name = getattr(getattr(self.sampler, "func", self.sampler), "__name__", "the sampler")
        if self.guide is not None and not takes_guide:
            raise UsageError(f"Evaluation.guide: {name} takes no guiding network; edm2_sampler does")
        weight = getattr(self.sampler, "keywords", {}).get("guidance", 1) if takes_guide else 1
        if self.guide is None and weight != 1:
            raise UsageError(f"{name}.guidance is {weight:g} and Evaluation.guide is not set; without one it is 1")


@dataclasses.dataclass
class Experiment:
    """A trajectory and what is measured on it."""

    trajectory: Trajectory
    evaluation: Evaluation


@dataclasses.dataclass
class Execution:
    """How a run is executed. Outside both hashes: it may move float rounding, nothing else; it is in the record.

    Args:
        threads: threads a process; 0 leaves PyTorch's own choice.
        device: `cpu`, `cuda` or `auto`.
        micro_batch: images a forward pass in training; 0 takes the whole batch.
        sample_batch: images a forward pass in sampling.
        checkpoint_seconds: seconds between checkpoints.
        workers: threads that read batches ahead; 0 reads each when it is needed.
        keep_samples: keep the generated images of every evaluation as `samples.tar` beside its record.
        dynamics: points of a run at which the magnitudes of activations, weights and updates are recorded; 0 for none.
        compile: compile the network's graphs (minutes at the start; worth it for long runs on a GPU).
    """

    threads: int = 0
    device: str = "auto"
    micro_batch: int = 0
    sample_batch: int = 256
    checkpoint_seconds: float = 120.0
    workers: int = 4
    keep_samples: bool = False
    dynamics: int = 0
    compile: bool = False


CONFIGURABLES: Sequence[Callable[..., Any]] = (
    Experiment,
    Trajectory,
    Evaluation,
    Preview,
    Guide,
    Execution,
    Scale,
    # data
    Dataset,
    Digits,
    Cifar10,
    FFHQ,
    AFHQv2,
    CelebA,
    ImageNet,
    Coco,
    ImageFolder,
    Latents,
    # networks, preconditioning, losses, sampling
    SongUNet,
    DhariwalUNet,
    EDM2UNet,
    DiT,
    UDiT,
    UViT,
    DDPMUNet,
    InverseSqrt2Scaling,
    ConstantScaling,
    LearnableScaling,
    VPPrecond,
    VEPrecond,
    iDDPMPrecond,
    EDMPrecond,
    EDM2Precond,
    DiscreteDenoiser,
    VPDenoiser,
    VPLoss,
    VELoss,
    iDDPMLoss,
    EDMLoss,
    UncertaintyLoss,
    HybridLoss,
    NoiseLoss,
    edm_sampler,
    ablation_sampler,
    rk45_sampler,
    edm2_sampler,
    ancestral_sampler,
    ddim_sampler,
    euler_maruyama_sampler,
    dpm_solver_sampler,
    dpmpp_sampler,
    # training
    AugmentPipe,
    HalfLifeEMA,
    TraditionalEMA,
    PowerEMA,
    PostHocEMA,
    ConstantEMA,
    LinearRampup,
    InverseSqrtDecay,
    ConstantRate,
    Adam,
    AdamW,
    # scoring
    DigitsProtocol,
    InceptionProtocol,
    PytorchFIDProtocol,
    ADMProtocol,
    DINOv2Protocol,
)
register(*CONFIGURABLES)
