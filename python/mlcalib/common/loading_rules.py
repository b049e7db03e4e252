"""How transformers turns the tensors in a checkpoint's files into those of a model, and back.

Beside ``compat`` the one place that uses what transformers does not promise to keep. Tried with
transformers 5.24.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LoadingRules:
    """The renamings and conversions that ``from_pretrained`` applies for a model's class."""

    def __init__(self, model: "PreTrainedModel") -> None:
        """Take the rules.

        Args:
            model: as transformers makes it; needs no weights. It is kept.
        """
        # All of this is undocumented.
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        self._model = model
        self._expected = model.state_dict()
        rules = get_model_conversion_mapping(model)
        self._renamings = [each for each in rules if isinstance(each, WeightRenaming)]
        self._converters = [each for each in rules if isinstance(each, WeightConverter)]
        self._by_pattern = {
            pattern: each for each in self._converters for pattern in each.source_patterns
        }

    def target(self, name: str) -> tuple[str, str | None]:
        """Return where in the model a stored tensor goes, and the pattern that says so."""
        from transformers.core_model_loading import rename_source_key

        prefix = self._model.base_model_prefix
        key, pattern = rename_source_key(
            name, self._renamings, self._converters, prefix, self._expected
        )
        if key not in self._expected and name in self._expected:
            key, pattern = rename_source_key(name, [], [], prefix, self._expected)
        return key, pattern

    def groups(self, names: Iterable[str]) -> list[list[str]]:
        """Return the stored tensors with a place in the model; those of one conversion together."""
        found: dict[str, list[str]] = {}
        for name in names:
            key, _ = self.target(name)
            if key in self._expected:
                found.setdefault(key, []).append(name)
        return list(found.values())

    def to_model(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the model's tensors, of stored ones by their names; whole groups of them.

        Those that the model has no place for are left out.
        """
        from transformers.core_model_loading import WeightRenaming, dot_natural_key

        conversions: dict[str, Any] = {}
        for name in sorted(stored, key=dot_natural_key):
            key, pattern = self.target(name)
            if key not in self._expected:
                continue
            if pattern is None:
                rule = conversions.setdefault(key, WeightRenaming(name, key))
            else:
                rule = conversions.setdefault(key, copy.deepcopy(self._by_pattern[pattern]))
            rule.add_tensor(key, name, pattern or name, stored[name])
        made: dict[str, Tensor] = {}
        for key, rule in conversions.items():
            given = rule.convert(key, model=self._model, config=self._model.config)
            made |= {name: t[0] if isinstance(t, list) else t for name, t in given.items()}
        return made

    def to_files(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what ``save_pretrained`` writes of tensors by their names in the model."""
        from transformers.core_model_loading import revert_weight_conversion

        return dict(revert_weight_conversion(self._model, dict(tensors)))

    def file_name(self, name: str) -> str:
        """Return what files call a module whose weight they hold under other tensors' names, too.

        The name that is written is one that leads back to the module.
        """
        own = f"{name}.weight"
        if own in self._expected and self._expected[own].device.type == "meta":
            saved = list(self.to_files({own: self._expected[own]}))
            if len(saved) == 1 and saved[0].endswith(".weight") and self.target(saved[0])[0] == own:
                return saved[0].removesuffix(".weight")
        return name
