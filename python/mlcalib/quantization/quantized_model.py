"""A quantized model in memory, and the checkpoint it is saved as."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mlcalib._core import Grid, QuantizedLinear
from mlcalib.calibration_sets import CalibrationSet
from mlcalib.checkpoints.held import held_dtype
from mlcalib.checkpoints.record import checkpoint_record, layer_record, summary
from mlcalib.formats import Format, formats, with_dtype
from mlcalib.models import Adapter
from mlcalib.notebook.plots import loss_heatmap
from mlcalib.quantization import show
from mlcalib.quantization.finish import finish
from mlcalib.quantization.sink import MemorySink
from mlcalib.quantization.source import Source

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class QuantizedModel:
    """A quantized model in memory. A notebook shows what was done and what it cost.

    Attributes:
        model: a transformers model whose quantized linears hold dequantized weights: what a reader
            of the checkpoint computes with.
        tokenizer: its tokenizer.
        adapter: what is known of the model's blocks.
        linears: name → codes and grid.
        losses: name → language → tr(D G Dᵀ) per token on that language's calibration text.
        recipe: what was asked for; JSON types.
        calibration: what it was calibrated on, or None.
        seconds: phase → time.
        expert_tokens: expert → language → calibration tokens that were routed to it.
        ranges: name → language → extremes of its input on that language's calibration text.
        scales: source of a scale group (a norm or a linear) → how its scales were found.
        folder: what the model was read from, whose config and other files the checkpoint takes
            over; None where it was given in memory or as a GGUF file.
        extra: tensors in the folder that the model has no place for; saved as they are.
        tokenizer_given: whether the tokenizer is saved in place of the folder's.
        device: what blocks ran on: ``cpu``, or the name of a GPU.
        shrinkage: linears of experts whose Gram was shrunk towards that of all experts → the share
            of its tokens that are theirs.
        statistics: linears of experts → ``gram``, or ``diagonal`` where memory was short and losses
            of languages are those of the diagonals of their Grams.
        divergence: name → language → what it costs the model, KL(float ‖ quantized) to second
            order in nats per token; with ``fisher_tokens``. Over linears it adds up.
        clipped: name → language → the share of its input's values outside the range that a format
            with static activations stores; empty with other formats.
        kv_cache: attention module → ``k`` and ``v`` → ranges, where they were asked for.
        tuned: what ``mlcalib.tune`` did, one record for each time; JSON types.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    adapter: Adapter
    linears: dict[str, QuantizedLinear]
    losses: dict[str, dict[str, float]]
    recipe: dict[str, Any]
    calibration: CalibrationSet | None
    seconds: dict[str, float]
    expert_tokens: dict[str, dict[str, int]] = field(default_factory=dict)
    ranges: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    scales: dict[str, dict[str, float]] = field(default_factory=dict)
    folder: Path | None = None
    extra: list[str] = field(default_factory=list)
    tokenizer_given: bool = False
    device: str = "cpu"
    shrinkage: dict[str, float] = field(default_factory=dict)
    statistics: dict[str, str] = field(default_factory=dict)
    divergence: dict[str, dict[str, float]] = field(default_factory=dict)
    clipped: dict[str, dict[str, float]] = field(default_factory=dict)
    kv_cache: dict[str, Any] = field(default_factory=dict)
    tuned: list[dict[str, Any]] = field(default_factory=list)

    def save(self, out: str | Path, format: str | None = None) -> None:  # noqa: A002
        """Write a Hugging Face folder with a model card; all of it or nothing.

        Args:
            out: a folder that does not exist.
            format: ``compressed-tensors``, ``gptq``, ``gptq-v2``, ``awq``, ``gguf`` or ``dense``;
                None for the (first) one that ``quantize`` was asked for. Codes and scales are the
                same in each, so several checkpoints can be saved one after the other.

        Raises:
            FileExistsError: ``out`` exists.
            ValueError: the format cannot hold these grids, or not exactly.
        """
        start = time.perf_counter()
        format = format or str(self.recipe["format"])  # noqa: A001
        record = self.metadata(format)
        model, adapter = self.model, self.adapter
        form = formats.get(format)()
        linears = self._held(form)
        blocks = {name: self._cache_of(name) for name, _ in adapter.named_blocks(model)}
        sink = MemorySink(model, adapter, form, linears, blocks)
        specs = {name: linear.grid.spec for name, linear in linears.items()}
        name, order = self.recipe["model"], self.recipe["order"]
        source = Source(name, model, adapter, model.dtype, self.folder, self.extra)
        finish(
            source,
            sink,
            specs,
            order,
            self.tokenizer,
            out,
            record,
            save_tokenizer=self.tokenizer_given,
        )
        self.seconds["write"] = self.seconds.get("write", 0.0) + time.perf_counter() - start

    def _cache_of(self, block: str) -> dict[str, Any]:
        """Return what a block's record says of its keys and values."""
        found = {name: each for name, each in self.kv_cache.items() if name.startswith(f"{block}.")}
        return {"kv_cache": found}

    def push_to_hub(
        self,
        repo_id: str,
        *,
        format: str | None = None,  # noqa: A002
        private: bool = False,
        token: str | None = None,
        revision: str | None = None,
    ) -> str:
        """Save a checkpoint, and upload it to the Hugging Face hub.

        Args:
            repo_id: ``NAME`` or ``ORGANISATION/NAME``; made where it does not exist.
            format: see ``save``.
            private: of a repository that is made: whether only its owner sees it.
            token: of the hub; None for the one that ``hf auth login`` or ``HF_TOKEN`` set.
            revision: a branch, which must exist; None for the main one.

        Returns:
            The address of the commit.

        Raises:
            ValueError: see ``save``.
            OSError: the hub cannot be reached, or gives no leave to write.
        """
        from huggingface_hub import HfApi

        hub = HfApi(token=token)
        # Before anything is written: a wrong name or token is found at once.
        place = hub.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with TemporaryDirectory(prefix="mlcalib-") as folder:
            out = Path(folder) / "checkpoint"
            self.save(out, format)
            recipe = self.recipe
            message = f"{recipe['method']} by mlcalib, {format or recipe['format']}"
            commit = hub.upload_folder(
                repo_id=place, folder_path=out, commit_message=message, revision=revision
            )
        return str(commit.commit_url)

    def _held(self, form: Format) -> dict[str, QuantizedLinear]:
        """Return the linears with grids as a format holds them; refuse one that cannot."""
        form.check_numbers({name: linear.grid.spec for name, linear in self.linears.items()})
        if self.kv_cache and not form.kv_cache:
            raise ValueError(
                f"{type(form).__name__} has no place for the scales of keys and values; save in a "
                "format of compressed-tensors, or quantize without kv_cache."
            )
        found = {}
        for name, linear in self.linears.items():
            grid = linear.grid
            dtype = held_dtype(name, grid, form, self.model.dtype)
            if grid.spec.scale_dtype != dtype:
                grid = Grid(grid.scale, grid.zero, with_dtype(grid.spec, dtype))
            found[name] = linear.replaced(grid=grid)
        specs = {name: linear.grid.spec for name, linear in found.items()}
        codes = {name: linear.codes for name, linear in found.items()}
        form.check(specs, {name: (each.shape[0], each.shape[1]) for name, each in codes.items()})
        return found

    def metadata(self, format: str) -> dict[str, Any]:  # noqa: A002
        """Return what ``mlcalib.json`` records of the checkpoint."""
        layers = {
            name: layer_record(
                linear,
                self.losses[name],
                self.ranges.get(name, {}),
                self.shrinkage.get(name),
                self.divergence.get(name),
                self.statistics.get(name),
                self.clipped.get(name),
            )
            for name, linear in self.linears.items()
        }
        return checkpoint_record(
            {**self.recipe, "format": format},
            self.calibration,
            layers,
            self.scales,
            self.expert_tokens,
            self.seconds,
            self.device,
            kv_cache=self.kv_cache,
            tuned=self.tuned,
        )

    def warnings(self) -> list[str]:
        """Return what to look at: one sentence each."""
        found: list[str] = self.metadata("")["warnings"]
        return found

    def summary(self) -> str:
        """Return a few lines on what was done and what to look at."""
        return summary(self.metadata(""))

    save_pretrained = save

    def generate(self, prompt: str, max_new_tokens: int = 50) -> str:
        """Let the model go on with a text; it always takes the most likely next token.

        Args:
            prompt: plain text; no chat template is put around it.
            max_new_tokens: how many tokens to add, at most.

        Returns:
            What the model adds, without the prompt and special tokens.

        Raises:
            ValueError: the tokenizer makes no token of the prompt; ``max_new_tokens`` is below 1.
        """
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}, expected 1 or more.")
        tokens = self.tokenizer(prompt, return_tensors="pt").to(self.model.device)
        length = tokens["input_ids"].shape[1]
        if length == 0:
            raise ValueError("The tokenizer makes no token of the prompt; give some text.")
        padding = self.tokenizer.pad_token_id
        made = self.model.generate(
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            max_new_tokens=max_new_tokens,
            do_sample=False,
            # Nothing is filled up, and nothing drawn; transformers would warn about both.
            pad_token_id=self.tokenizer.eos_token_id if padding is None else padding,
            temperature=None,
            top_p=None,
            top_k=None,
        )
        added: str = self.tokenizer.decode(made[0, length:], skip_special_tokens=True)
        return added

    def plot_losses(
        self, reference: "str | Mapping[str, Mapping[str, float]] | None" = None
    ) -> "Figure":
        """Draw the loss of every linear in every language; see ``mlcalib.report.loss_heatmap``.

        Args:
            reference: what losses are divided by: a language, the ``losses`` of another model, or
                None for the mean of the layer's languages.

        Raises:
            ImportError: matplotlib or pandas is not installed.
            ValueError: the model was quantized without calibration; a reference that is not there.
        """
        return loss_heatmap(self.losses, reference)

    def __repr__(self) -> str:
        return show.as_text(self.metadata(str(self.recipe["format"])), self._size())

    def _repr_html_(self) -> str:
        return show.as_html(self.metadata(str(self.recipe["format"])), self._size())

    def _size(self) -> str:
        return show.size_line(self.model, self.linears, str(self.recipe["format"]))
