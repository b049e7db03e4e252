"""``mlcalib lm-eval``."""

import sys

import typer

# All arguments are the harness's, --help too.
CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def lm_eval(context: typer.Context) -> None:
    """Run lm-evaluation-harness with the model `mlcalib`, which is any model that mlcalib reads.

    The arguments are those of the harness's own command, `lm-eval`.

    Example: mlcalib lm-eval run --model mlcalib --model_args pretrained=DIR --tasks xnli_sw
    """
    from mlcalib.common import compat
    from mlcalib.common.optional import optional

    optional("lm_eval", "eval", "mlcalib lm-eval")
    sys.argv = ["lm-eval", *context.args]
    compat.harness_command()
