"""The section ``model`` of a config: the network, ours or somebody's."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ValidationInfo, model_validator

from .configbase import Section


def _factory(name: str, info: ValidationInfo) -> str:
    if re.fullmatch(r"[\w.]+:[\w.]+", name) is None:
        more = ", smp:NAME or torchvision:NAME" if info.data.get("backbone") else ""
        raise ValueError(f"{'model' if more else 'train'}.factory is '{name}'. Give package.module:function{more}.")
    return name


Factory = Annotated[str, AfterValidator(_factory)]
"""``package.module:function``"""


class ModelConfig(Section):
    backbone: str = "mobilenetv2_100"
    """A backbone of timm that gives maps at stride 4 and can be dilated to ``output_stride``, or whose own last stride
    that is. Transformers of one image size are none."""
    output_stride: Literal[8, 16, 32] = 16
    """Pixels of the image per cell of the backbone's last map."""
    weights: str = "imagenet"
    """``imagenet`` (timm downloads), ``none``, ``demo`` (ships with meal-gpu: of ``mobilenetv2_035``, learned on drawn
    street scenes alone), or a ``.safetensors`` file in timm's naming (``~`` is home)."""
    freeze_backbone: bool = True
    """No gradients and batch-norm in eval mode: then features are constants and are computed once. With ``factory``
    false by default; true needs a module that says what its features are (`FeatureNetwork`)."""
    factory: Factory | None = None
    """Your own network in place of ours: ``package.module:function``, called with the number of classes; or
    ``smp:NAME`` of segmentation-models-pytorch, ``torchvision:NAME``. The four keys above are then not used, but
    ``freeze_backbone``. See docs/your-network.md."""
    arguments: dict[str, Any] = {}  # noqa: RUF012 - pydantic copies it
    """More arguments of ``factory``, by name."""
    path: str | None = None
    """Where the modules of ``factory`` and ``train.factory`` are looked for first; by default the working directory."""
    feature_layer: str | None = None
    """With ``factory``: the module inside the network whose maps are embedded; by default its ``encoder``, ``backbone``
    or ``features``."""
    align_corners: bool = False
    """With ``factory``: how logits and maps are interpolated to the images' size, as in PyTorch."""
    precision: Literal["auto", "float32", "tf32", "bfloat16"] = "auto"
    """Of forward and backward. ``auto`` takes bfloat16 where the processor multiplies it natively (GPUs from compute
    capability 8.0 on, not a T4), else float32; ``float32`` is IEEE's everywhere; ``tf32``: float32 whose products a
    GPU may take of inputs rounded to 10 bits of mantissa, several times as fast (needs such a GPU)."""
    deterministic: bool = True
    """On CUDA: equal runs give equal bits. False leaves the order of sums in the backward pass to cuDNN, which then
    may be faster: by a tenth of a training step at most, by estimate; scoring and evaluation repeat themselves either
    way. On the CPU equal runs are equal with the same number of threads, whatever this says."""
    cache_features: Literal["auto", "always", "never"] = "auto"
    """Keep a frozen backbone's features on the device; ``auto`` does so when they fit into ``data.budget_gb``."""

    fold_norms: bool = False
    """Score and evaluate with the batch-norms folded into the convolutions before them, which rounds differently."""
    compile: Literal["none", "graphs", "inductor"] = "none"
    """How scoring, evaluation and training steps are run: operation by operation; ``graphs``: recorded, and replayed as
    CUDA graphs (on the CPU traced, but run one by one), the same arithmetic; ``inductor``: compiled, other rounding."""

    @property
    def without_weights(self) -> "ModelConfig":
        """The same network at random values: for shapes alone, or for weights that come from elsewhere."""
        return self.model_copy(update={"weights": "none"})

    @model_validator(mode="before")
    @classmethod
    def _default(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("factory") is not None and "freeze_backbone" not in values:
            return {**values, "freeze_backbone": False}
        return values

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        self._check_factory()
        if self.cache_features == "always" and not self.freeze_backbone:
            raise ValueError("model.cache_features is 'always' and model.freeze_backbone is false: the features of a "
                             "backbone that is trained change in every step. Use model.cache_features: auto, or freeze "
                             "the backbone.")
        return self

    def _check_factory(self) -> None:
        ours = ModelConfig.model_fields
        if self.factory is None:
            given = [name for name in ("arguments", "feature_layer", "align_corners")
                     if getattr(self, name) != ours[name].default]
            if given:
                raise ValueError(f"model.{given[0]} is given and model.factory is not, which it belongs to. Name the "
                                 "factory of your network, or leave it out.")
            return
        given = [name for name in ("backbone", "output_stride", "fold_norms", "compile")
                 if getattr(self, name) != ours[name].default]
        if given:
            raise ValueError(f"model.factory is '{self.factory}' and model.{given[0]} is "
                             f"'{getattr(self, given[0])}', which is of the network that ships. Leave it out: what "
                             "your factory is to know, it is told by model.arguments.")
