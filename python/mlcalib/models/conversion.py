"""From the tensors of a checkpoint's files to those of the model, and back."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from mlcalib.common.loading_rules import LoadingRules
from mlcalib.models.base import Origin
from mlcalib.models.experts import ExpertList
from mlcalib.models.fusion import Fusion
from mlcalib.models.own_rules import TransposedLinear

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Conversion:
    """How transformers names and fuses what files hold, and how linears are made of it here."""

    def __init__(self, model: "PreTrainedModel") -> None:
        """Take the rules of a model's class.

        Args:
            model: with fused experts, as transformers makes it; needs no weights. It is kept.
        """
        self._rules = LoadingRules(model)
        self._fusions: dict[str, Fusion] = {}
        self._transposed: set[str] = set()

    def learn(self, model: "PreTrainedModel") -> None:
        """Take note of how linears were made in a model (``experts.unfuse_all``)."""
        for path, module in model.named_modules():
            if isinstance(module, ExpertList) and module.fusion is not None:
                self._fusions[path] = module.fusion
            elif isinstance(module, TransposedLinear):
                self._transposed.add(f"{path}.weight")

    def origins(self, stored: Mapping[str, Tensor]) -> dict[str, Origin]:
        """Return tensor of the model → what it is made from.

        Args:
            stored: name in files → a tensor of that shape, on the meta device.
        """
        found: dict[str, Origin] = {}
        for names in self._rules.groups(stored):
            made = self.to_model({name: stored[name] for name in names})
            found |= {name: Origin(tuple(names), tensor) for name, tensor in made.items()}
        return found

    def to_model(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the model's tensors, each expert's own, of tensors by their names in files."""
        made = self._turned(self._rules.to_model(stored))
        for path, fusion in self._fusions.items():
            names = [f"{path}.{name}" for name in fusion.fused if f"{path}.{name}" in made]
            fused = {name.removeprefix(f"{path}."): made.pop(name) for name in names}
            made |= {f"{path}.{name}": each for name, each in fusion.split(fused).items()}
        return made

    def to_files(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what files hold, of the floating tensors of a block by their names in the model.

        Experts whose linears are all among them are fused again.
        """
        left = self._turned(tensors)
        for path, fusion in self._fusions.items():
            prefix = f"{path}."
            own = {
                name.removeprefix(prefix): tensor
                for name, tensor in left.items()
                if name.startswith(prefix) and name.removeprefix(prefix)[0].isdecimal()
            }
            linears = {name.split(".")[1] for name in own if name.endswith(".weight")}
            if linears == {*fusion.first, "down_proj"}:
                left = {
                    name: each
                    for name, each in left.items()
                    if name.removeprefix(prefix) not in own
                }
                left |= {f"{prefix}{name}": each for name, each in fusion.join(own).items()}
        return self._rules.to_files(left)

    def _turned(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        turned = self._transposed
        return {
            name: each.T.contiguous() if name in turned else each for name, each in tensors.items()
        }

    def file_name(self, name: str) -> str:
        """Return what files call a linear of the model."""
        return self._rules.file_name(name)
