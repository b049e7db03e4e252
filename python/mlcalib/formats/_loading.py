"""How to load a checkpoint, for its model card."""

BY_MLCALIB = (
    "```python\n# pip install mlcalib\nimport mlcalib\nfrom transformers import AutoTokenizer\n\n"
    'model = mlcalib.load("THIS_FOLDER")\n'
    'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")\n```'
)
_PACKED = (
    "After `import mlcalib; mlcalib.register_packed()` the weights stay packed on a CPU; of the "
    "packages above only transformers is needed then.\n\n"
)


def by_transformers(*packages: str, packed: bool = True) -> str:
    """Return Markdown for a format that transformers and vLLM read.

    Args:
        packages: what transformers needs beside it.
        packed: whether mlcalib can keep its weights packed.
    """
    return (
        f"```python\n# pip install {' '.join(['transformers', *packages])}\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")\n'
        'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")\n```\n\n'
        f"{_PACKED if packed else ''}"
        "vLLM reads the format too (`vllm serve THIS_FOLDER`); this checkpoint was not tried there."
    )
