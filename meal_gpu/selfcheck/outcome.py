"""What a check of `meal-gpu selfcheck` finds, and what all of them share."""

import torch

Numbers = dict[str, float]
Finding = tuple[str, Numbers]


class Deviation(Exception):  # noqa: N818
    """A backend disagrees with its reference."""

    def __init__(self, text: str, **numbers: float) -> None:
        super().__init__(text)
        self.numbers = numbers


class Unavailable(Exception):  # noqa: N818
    """This machine has nothing to check; the text says what is missing."""


def cuda() -> torch.device:
    if not torch.cuda.is_available():
        raise Unavailable("no CUDA device is usable" if torch.version.cuda else
                          f"this PyTorch, {torch.__version__}, was built without CUDA")
    return torch.device("cuda")


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
