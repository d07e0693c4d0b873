"""Patches in place of those that nobody can label: the next best, by the network that asked for them."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from ..errors import InputError
from ..files import open_own
from ..network.interface import Network
from ..records import Record
from ..stages.pool import Pool
from ..stages.predict import patch_maps
from ..timing import StageClock
from . import outputs
from .acquire import Query, acquire
from .experiment import Experiment
from .learning import learn, learn_members


@dataclass
class Replacing:
    """For round k of a seed, whose pool has the labels of the rounds before."""

    experiment: Experiment
    pool: Pool
    seed: int
    k: int
    directory: Path

    def __call__(self, n: int, asked: list[int], skipped: list[int]) -> list[Record]:
        """At most n other patches than those that the round has asked for, as its record describes them."""
        pool = self.pool.without(torch.tensor(asked))
        n = min(n, pool.n_free)
        if n < 1:
            return []
        samples = self.experiment.stores.dataset.train
        if self.k == 0:
            drawn = self.experiment.askable.after_initial(self.experiment.config.query, self.seed)
            free = pool.free.cpu()
            return outputs.describe(Query(drawn[free[drawn]][:n], None), pool.grid, samples)
        config = self.experiment.config.revised("query", n_query=n)
        experiment, clock = self.experiment.like(config, self.experiment.progress), StageClock(pool.device)
        model = self._model(clock)
        members = learn_members(experiment, self.pool, self.seed, self.k - 1, clock)
        chosen = acquire(experiment, pool, model, self.seed, self.k - 1, clock, members)
        maps = patch_maps(model, experiment.train.features(model), chosen.ids, experiment.backend)
        outputs.add_pictures(chosen, maps, experiment.stores.train.images, pool.grid, self.k, self.directory)
        return outputs.describe(chosen, pool.grid, samples)

    def _model(self, clock: StageClock) -> Network:
        """The network that asked: as it was kept, or trained again where it is not there; equal runs are equal."""
        file = self.directory / "model.safetensors"
        try:
            open_own(file).close()
            with safe_open(file, "pt") as held:
                if (held.metadata() or {}).get("round") == str(self.k - 1):
                    model = self.experiment.new_model(self.seed, self.k - 1)
                    model.load_state_dict({name: held.get_tensor(name) for name in held.keys()})  # noqa: SIM118
                    return model.eval()
        except FileNotFoundError:
            pass
        except InputError:
            raise
        except Exception as error:  # safetensors and PyTorch fail in whatever way the damage leads them to
            raise InputError(f"{file} is damaged ({error}). Remove it: the network is then trained again.") from None
        return learn(self.experiment, self.pool, self.seed, self.k - 1, clock)[0]
