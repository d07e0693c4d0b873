"""The network that a config names: ours, or what its factory returns."""

from ..config import ModelConfig
from ..errors import InputError, first_line
from .factory import find
from .interface import Network
from .model import DeepLabV3Plus
from .own import OwnNetwork


def build(classes: int, config: ModelConfig) -> Network:
    """A network with that many classes, on the host. Raises `InputError` where it cannot be made."""
    if config.factory is None:
        return DeepLabV3Plus(classes, config)
    make, library = find("model.factory", config.factory, config.path), config.factory.partition(":")[0]
    name = {"smp": "classes", "torchvision": "num_classes"}.get(library)
    try:
        module = make(**{name: classes}, **config.arguments) if name else make(classes, **config.arguments)
    except InputError:
        raise
    except Exception as error:  # whatever a stranger's code raises
        raise InputError(f"model.factory '{config.factory}' failed with {classes} classes and model.arguments "
                         f"{config.arguments}: {type(error).__name__}: {first_line(error)}.") from error
    return OwnNetwork(module, classes, config)


def needs_classes(config: ModelConfig) -> bool:
    """Whether a network can be made only for the classes of the data: our pretrained one has a head for none."""
    return config.factory is not None
