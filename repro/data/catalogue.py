"""What `repro data list` tells of each data set: who uses it, where to obtain it, its licence, its size."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Entry:
    """One data set.

    Args:
        name: of `repro data prepare NAME`.
        title: what it is.
        used_by: papers and what they make of it.
        obtain: where it comes from, and in which form it is taken.
        licence: its terms, as its makers state them.
        size: of the download.
        count: images expected; None where no specification knows.
        hashes: what is known of its bytes.
        command: how it is prepared.
    """

    name: str
    title: str
    used_by: str
    obtain: str
    licence: str
    size: str
    count: int | None
    hashes: str
    command: str


CATALOGUE: tuple[Entry, ...] = (
    Entry(
        "digits",
        "scikit-learn's digits and their mirror images, 8x8 grey, 10 classes",
        "every table at the scale mini",
        "ships with scikit-learn (UCI's optical recognition of handwritten digits)",
        "CC BY 4.0",
        "nothing to download",
        3594,
        "manifest at 8x1: sha256 708bc4413b73063f49dd555244a97164a26f039eea7fe44ae9c4bdbba893b280",
        "repro data prepare digits --resolution 8 --channels 1",
    ),
    Entry(
        "cifar10",
        "CIFAR-10, training batches 1-5 in file order, 32x32, 10 classes",
        "EDM; ScaleLong and U-ViT",
        "https://www.cs.toronto.edu/~kriz/cifar.html: cifar-10-python.tar.gz (downloaded without --source)",
        "none stated by its makers, who ask for a citation",
        "170,498,071 bytes",
        50000,
        "archive: md5 c58f30108f718f92721af3b95e74349a; each batch's md5 as torchvision has it",
        "repro data prepare cifar10",
    ),
    Entry(
        "ffhq",
        "FFHQ, faces, 1024x1024 resized by Lanczos to 64x64",
        "EDM",
        "https://github.com/NVlabs/ffhq-dataset: images1024x1024, as a folder or zip",
        "CC BY-NC-SA 4.0 (images: their own licences)",
        "89 GB",
        70000,
        "none known",
        "repro data prepare ffhq --source images1024x1024 --resolution 64",
    ),
    Entry(
        "afhqv2",
        "AFHQv2, animal faces resized by Lanczos to 64x64",
        "EDM",
        "https://github.com/clovaai/stargan-v2: afhq_v2, as a folder or zip",
        "CC BY-NC 4.0",
        "7 GB",
        None,
        "none known; about 15.8 thousand images, and whether EDM used the test split is not known",
        "repro data prepare afhqv2 --source afhq_v2.zip --resolution 64",
    ),
    Entry(
        "celeba",
        "CelebA's training split, aligned, central 128x128 resized to 64x64",
        "ScaleLong and U-ViT",
        "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html: img_align_celeba.zip; list_eval_partition.txt beside it",
        "non-commercial research only",
        "1.4 GB",
        162770,
        "none known; 202,599 images in all",
        "repro data prepare celeba --source img_align_celeba.zip --resolution 64",
    ),
    Entry(
        "imagenet",
        "ImageNet (ILSVRC2012), training set, 1,000 classes",
        "EDM2 at 64 and 512, DiT and U-DiT at 256 and 512, U-ViT at 64 (dhariwal); EDM at 64 (center-crop)",
        "https://www.image-net.org: ILSVRC2012 training images, one folder a class, as a folder or zip",
        "non-commercial research and education, by agreement",
        "138 GB",
        1281167,
        "none known",
        "repro data prepare imagenet --source train --resolution 64 --crop dhariwal",
    ),
    Entry(
        "coco",
        "MS-COCO 2014, training split; `coco-val` is the validation split (40,504)",
        "U-ViT and ScaleLong, with captions",
        "https://cocodataset.org: train2014.zip and annotations_trainval2014.zip",
        "annotations CC BY 4.0; images: Flickr's terms",
        "13 GB",
        82783,
        "none known",
        "repro data prepare coco --source train2014.zip --resolution 256",
    ),
    Entry(
        "latents",
        "latents of a prepared set, through a VAE, with captions' features for MS-COCO",
        "EDM2 (edm2), DiT and U-DiT (dit), U-ViT (coco)",
        "VAE: stabilityai/sd-vae-ft-mse (edm2), stabilityai/sd-vae-ft-ema (dit); text: openai/clip-vit-large-patch14",
        "MIT (the named VAEs)",
        "0.3 GB (VAE), 1.7 GB (CLIP)",
        None,
        "the weights' sha256 goes into the manifest",
        "repro data prepare latents --source data/imagenet-dhariwal-512x3 --form edm2 --vae DIR",
    ),
    Entry(
        "folder",
        "any folder or zip of images, flat or one folder a class",
        "your own experiments",
        "yours",
        "yours",
        "any",
        None,
        "none",
        "repro data prepare folder --source pictures --resolution 64 --classes 3",
    ),
)


def names() -> list[str]:
    """All names that `repro data prepare` knows."""
    return [*(entry.name for entry in CATALOGUE), "coco-val"]
