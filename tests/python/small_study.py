"""A study folder as ``mlcalib study`` leaves it, with made-up numbers of a believable shape."""

import json

import numpy as np

LANGUAGES = ["en", "fr", "sw", "zh", "xh", "st", "zu", "yo", "ig", "ha"]
BLOCKS = 6
KINDS = {
    "self_attn.q_proj": "attention", "self_attn.k_proj": "attention",
    "self_attn.v_proj": "attention", "self_attn.o_proj": "out", "mlp.gate_proj": "mlp",
    "mlp.up_proj": "mlp", "mlp.down_proj": "down",
}  # fmt: skip
MIXES = {
    "en": ["en"], "fr": ["fr"], "sw": ["sw"], "zh": ["zh"], "multi2": ["en", "sw"],
    "multi5": ["en", "fr", "sw", "zh", "yo"], "multi10": LANGUAGES, "multimix": LANGUAGES,
}  # fmt: skip
MAIN = 40960
BUDGETS = (2560, 10240)
QUANTIZERS = {"gptq-w4-g64": "gptq", "awq-w4-g64": "awq"}
HURT = dict(zip(LANGUAGES, (0.2, 0.36, 0.13, 0.4, 0.17, 0.21, 0.19, 0.12, 0.14, 0.16), strict=True))


def linears():
    return {
        f"model.layers.{block}.{kind}": (block, kind, source)
        for block in range(BLOCKS)
        for kind, source in KINDS.items()
    }


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def plan(models, mixes, budgets, tasks):
    settings = {}
    for name, codes in mixes.items():
        for tokens in (MAIN, *(budgets if name in ("en", "multi5", "multi10") else ())):
            settings[name if tokens == MAIN else f"{name}-{tokens}"] = {
                "set": name,
                "tokens": tokens,
                "languages": {code: tokens // len(codes) for code in codes},
                "weights": {code: 1 / len(codes) for code in codes},
            }
    options = {"bits": 4, "group_size": 64, "symmetric": False}
    variants = {
        f"{quantizer}-{setting}": {
            "setting": setting, "method": method, "quantizer": quantizer, "options": options,
            "propagate": "float",
        }
        for quantizer, method in QUANTIZERS.items()
        for setting in settings
    }  # fmt: skip
    variants["rtn-w4-g64"] = {
        "setting": None, "method": "rtn", "quantizer": "rtn-w4-g64", "options": options,
        "propagate": "float",
    }  # fmt: skip
    return {
        "layout": 1, "name": "made-up", "mlcalib": "0.1.0",
        "versions": {"torch": "2.13.0+cpu", "transformers": "5.23.0"}, "isa": "avx512_bf16",
        "threads": 2, "corpus": "files:/somewhere/text", "seq_len": 512, "seed": 0,
        "propagate": "float",
        "models": {
            slug: {"source": slug.upper(), "parameters": 134515008, "dtype": "float32"}
            for slug in models
        },
        "settings": settings, "variants": variants,
        "evaluation": {
            "tasks": ["perplexity", *tasks], "languages": list(LANGUAGES), "tokens": 8192,
            "seq_len": 512, "definition": "Token perplexity of the first 8,192 tokens.",
        },
    }  # fmt: skip


def damage(variant, setting, language):
    """Expected rise of the token loss."""
    if setting is None:
        return 1.5 * HURT[language]
    inside = setting["languages"].get(language, 0) / MAIN
    covered = 0.45 * min(1, 12 * inside) ** 0.3 if inside else 0.08 * len(setting["languages"]) / 5
    small = 0.12 * (MAIN / setting["tokens"]) ** 0.3
    factor = 0.85 if variant["method"] == "awq" else 1.0
    return factor * HURT[language] * (1 - covered + small)


def build(
    folder, models=("smollm2",), mixes=MIXES, budgets=BUDGETS, tasks=("xnli",), documents=14, seed=0
):
    """Write the folder; returns study.json's content."""
    study = plan(models, mixes, budgets, tasks)
    write(folder / "study.json", study)
    for number, slug in enumerate(models):
        _model(folder / slug, slug, study, documents, np.random.default_rng([seed, number]))
    return study


def _model(folder, slug, study, documents, draws):
    base, sizes, right = {}, {}, {}
    for code in LANGUAGES:
        count = documents + LANGUAGES.index(code) % 4
        tokens = draws.multinomial(8192 - count, np.full(count, 1 / count)) + 1
        sizes[code] = (tokens, (tokens * draws.uniform(1.8, 4.2)).astype(int))
        base[code] = tokens * draws.normal(2.4 + HURT[code], 0.25, count)
        right[code] = draws.random(300) < 0.62
    _evaluation(folder, slug, "float", ("float", "none"), base, sizes, right)
    heldout, power = {}, {}
    for linear, (block, kind, _) in linears().items():
        power[linear] = {
            code: round(float(draws.uniform(0.5, 2) * 3**block), 6) for code in LANGUAGES
        }
        heldout[linear] = 0.03 * (3 if kind == "mlp.down_proj" else 1) * (2 if block == 0 else 1)
    for name, variant in study["variants"].items():
        setting = variant["setting"] and study["settings"][variant["setting"]]
        losses = {}
        rises = {code: damage(variant, setting, code) for code in LANGUAGES}
        changed = {}
        for code, rise in rises.items():
            noise = draws.normal(0, 0.035, len(base[code]))
            changed[code] = base[code] + sizes[code][0] * (rise + noise)
        worse = {
            code: each & (draws.random(300) > 0.4 * rises[code]) for code, each in right.items()
        }
        _evaluation(
            folder,
            slug,
            name,
            (variant["method"], variant["setting"] or "none"),
            changed,
            sizes,
            worse,
        )
        for linear in linears():
            losses[linear] = {
                code: float(
                    heldout[linear] * power[linear][code] * rises[code] * draws.lognormal(0, 0.15)
                )
                for code in LANGUAGES
            }
        write(
            folder / "variants" / f"{name}.json",
            {
                "losses": losses, "heldout": losses, "scales": {}, "warnings": [],
                "seconds": {"solve": 3.7, "scale": 0.5, "losses": 1.2, "write": 0.6},
                "bytes": 91_234_567,
            },
        )  # fmt: skip
    write(folder / "layers.json", {"power": power, **_ranges(study, draws)})
    write(
        folder / "costs.json",
        {
            "seconds": {"load": 2.9, "forward": 460.0, "gram": 159.0, "heldout": 60.0},
            "peak_bytes": 2_000_000_000, "tokens": 232_106, "separate_tokens": 655_360,
        },
    )  # fmt: skip


def _evaluation(folder, slug, name, origin, losses, sizes, right):
    method, calibration = origin
    rows, texts = [], {}
    for code in LANGUAGES:
        tokens, count = sizes[code]
        mean = losses[code].sum() / tokens.sum()
        row = {
            "model": slug, "method": method, "calibration": calibration, "language": code,
            "stderr": 0.01, "n": int(tokens.sum()), "task": "perplexity",
        }  # fmt: skip
        rows += [
            {**row, "metric": "token_loss", "value": mean},
            {**row, "metric": "perplexity", "value": float(np.exp(mean))},
        ]
        if code in ("en", "fr", "sw", "zh"):
            accuracy = float(right[code].mean())
            rows.append({**row, "task": "xnli", "metric": "acc", "value": accuracy, "n": 300})
        texts[code] = {
            "loss": losses[code].tolist(), "tokens": tokens.tolist(), "bytes": count.tolist()
        }  # fmt: skip
    items = {code: right[code].astype(int).tolist() for code in ("en", "fr", "sw", "zh")}
    content = {
        "variant": name, "seconds": 55.1, "rows": rows, "documents": texts, "items": {"xnli": items}
    }  # fmt: skip
    write(folder / "evaluations" / f"{name}.json", content)


def _ranges(study, draws):
    ranges, heldout, outside = {}, {}, {name: {} for name in study["settings"]}
    for linear, (block, _, source) in linears().items():
        twin = next(
            (
                other
                for other, (at, _, from_) in linears().items()
                if (at, from_) == (block, source) and other in ranges
            ),
            None,
        )
        if twin:
            ranges[linear], heldout[linear] = ranges[twin], heldout[twin]
            for shares in outside.values():
                shares[linear] = shares[twin]
            continue
        wide = {code: float(draws.uniform(3, 9) * 1.4**block) for code in LANGUAGES}
        ranges[linear] = {code: [-0.8 * each, each] for code, each in wide.items()}
        heldout[linear] = {code: [-0.9 * each, 1.05 * each] for code, each in wide.items()}
        for name, setting in study["settings"].items():
            outside[name][linear] = {
                code: {
                    "share": float(
                        draws.uniform(0.0002, 0.001) * (1 if code in setting["languages"] else 6)
                    ),
                    "channels": {
                        str(draws.integers(0, 576)): round(float(draws.uniform(0, 0.4)), 4)
                        for _ in range(8)
                    },
                }
                for code in LANGUAGES
            }
    return {"ranges": ranges, "heldout_ranges": heldout, "outside": outside}
