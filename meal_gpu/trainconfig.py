"""The section ``train`` of a config: the paper's training, and what goes beyond it."""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from .configbase import Float, Int, NonNegative, Positive, Section
from .modelconfig import Factory


class TrainConfig(Section):
    epochs: Positive = 25
    """Epochs in each round but the last, from new random weights of the head."""
    final_epochs: Positive = 32
    """Epochs after the last acquisition."""
    batch_size: Annotated[Int, Field(ge=2)] = 8
    """At least 2, since batch-norm of a pooled map needs two values."""
    sample: Literal["patch", "image"] = "patch"
    """What ``batch_size`` counts: labelled patches, or images with all of their labelled patches."""
    lr: Annotated[Float, Field(gt=0)] = 1e-3
    """Adam's learning rate."""
    lr_decay: Annotated[Float, Field(gt=0, le=1)] = 1.0
    """Factor of the learning rate; see ``lr_decay_every``."""
    lr_decay_every: NonNegative = 0
    """Multiply the learning rate by ``lr_decay`` every so many epochs; 0 keeps it constant."""
    schedule: Literal["step", "cosine", "poly"] = "step"
    """``step``: by ``lr_decay``; ``cosine`` and ``poly`` (power 0.9) fall to 0 over the steps of a round."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """``adamw`` decays the weights by ``weight_decay``, apart from the gradients."""
    weight_decay: Annotated[Float, Field(ge=0, lt=1)] = 0.0
    """Of ``adamw``, times the learning rate in each step."""
    min_steps: NonNegative = 0
    """Steps that a round has at least: epochs are added until there are so many. Epochs alone make a training the
    shorter the fewer patches are labelled."""
    ema: Annotated[Float, Field(ge=0, lt=1)] = 0.0
    """Decay per step of a mean of the weights, which is evaluated, scores, and is kept in place of the last step's. 0:
    no mean."""
    flip: bool = False
    """Show half of the patches, at random, with left and right exchanged. What changes images goes through the backbone
    in every step, patch by patch, also where it is frozen."""
    scale: Annotated[Float, Field(ge=1, le=8)] = 1.0
    """Zoom each patch and its surroundings by a random factor from 1 / ``scale`` to ``scale``; 1: not at all."""
    colour: Annotated[Float, Field(ge=0, le=1)] = 0.0
    """Change brightness, contrast and saturation by random factors from 1 - ``colour`` to 1 + ``colour``; 0: not at
    all."""
    classmix: Annotated[Float, Field(ge=0, le=1)] = 0.0
    """Part of the patches that get half of the classes of another patch of their batch pasted onto them, with their
    pixels (ClassMix); 0: none."""
    pseudo_labels: NonNegative = 0
    """Unlabelled patches of the same image that are trained on beside each labelled one, by what the mean of the
    weights (``ema``) says of them; 0: none. What nobody has labelled anywhere is then learned as something else."""
    pseudo_threshold: Annotated[Float, Field(ge=0, le=1)] = 0.9
    """Of ``pseudo_labels``: pixels whose class has so high a probability are believed."""
    consistency: Annotated[Float, Field(ge=0)] = 0.0
    """Weight of the mean squared difference between a patch's logits and those of its image in a mirror, on labelled
    patches and on an unlabelled one of the same image beside each; the image in the mirror learns the labels too. 1:
    EquAL's training loss; 0: none."""
    eval_every: Positive = 1
    """Evaluate every so many epochs (and always after the last); the best epoch is chosen among those."""
    factory: Factory | None = None
    """Your own training, ``package.module:function``: called with the network and the labelled patches of a round, it
    returns the trained network; the keys above but ``epochs`` are then its own affair. See docs/your-network.md."""

    def lasting(self, epochs: int, per_epoch: int) -> int:
        """So many epochs of so many steps, and as many more as ``min_steps`` takes."""
        return max(epochs, math.ceil(self.min_steps / max(per_epoch, 1)))

    @property
    def unlabelled(self) -> int:
        """Patches without labels that are seen beside each labelled one."""
        return max(self.pseudo_labels, 1 if self.consistency else 0)

    @property
    def changes_images(self) -> bool:
        """Its steps see other pixels than the files have."""
        return self.flip or self.scale > 1 or self.colour > 0 or self.classmix > 0

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        if self.lr_decay < 1 and self.lr_decay_every == 0:
            raise ValueError(f"train.lr_decay is {self.lr_decay:g} and train.lr_decay_every is 0, so that it would "
                             "never be applied. Give train.lr_decay_every in epochs, or leave out train.lr_decay.")
        if self.lr_decay_every and self.schedule != "step":
            raise ValueError(f"train.schedule is '{self.schedule}' and train.lr_decay_every is {self.lr_decay_every}: "
                             "that schedule has no steps. Use train.schedule: step, or leave out train.lr_decay_every.")
        if self.weight_decay and self.optimizer == "adam":
            raise ValueError(f"train.weight_decay is {self.weight_decay:g} and train.optimizer is 'adam', which decays "
                             "no weights. Use train.optimizer: adamw, or leave out train.weight_decay.")
        if self.pseudo_labels and not self.ema:
            raise ValueError(f"train.pseudo_labels is {self.pseudo_labels} and train.ema is 0: it is the mean of the "
                             "weights that labels. Use train.ema: 0.99, or leave out train.pseudo_labels.")
        return self
