"""Lets lm-evaluation-harness find the model ``mlcalib`` by itself: it looks for no plug-ins.

Python imports this at every start (``mlcalib_lm_eval.pth``), so it imports nothing, and only waits:
once somebody imports ``lm_eval.models``, the model's name is put beside the harness's own. mlcalib
is imported when that model is asked for.
"""

import sys


class _Finder:
    """Finds ``lm_eval.models`` as Python would, once."""

    @classmethod
    def find_spec(cls, name, path, target=None):  # type: ignore[no-untyped-def]
        if name != "lm_eval.models":
            return None
        from importlib.machinery import PathFinder

        sys.meta_path.remove(cls)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_register(module):  # type: ignore[no-untyped-def]
                run(module)
                _register()

            spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec


def _register() -> None:
    try:
        from lm_eval.api.registry import model_registry

        model_registry.register("mlcalib", target="mlcalib.evaluation.lm_eval:LoadedModel")
    except Exception as error:  # whatever another release does, it works as without mlcalib
        import warnings

        warnings.warn(
            f"this lm-eval does not take the model mlcalib ({error!r}); "
            "python -m mlcalib.evaluation.lm_eval may still know it.",
            stacklevel=2,
        )


sys.meta_path.insert(0, _Finder)
