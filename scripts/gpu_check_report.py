"""gpu_check_report.py OUT: joins what the steps of gpu_check.sh left into JSON and tables."""

import json
import sys
from pathlib import Path


def lines(path: Path) -> list[dict[str, object]]:
    """Return the rows of a file with one JSON object a line; none where there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table(rows: list[dict[str, object]]) -> list[str]:
    """Return the lines of a Markdown table; rows may lack columns of others."""
    if not rows:
        return ["(none)"]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    values = [[row.get(key, "") for key in keys] for row in rows]
    cells = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row] for row in values]
    return [f"| {' | '.join(row)} |" for row in (keys, ["---"] * len(keys), *cells)]


out = Path(sys.argv[1])
device = out / "device.json"
result = {
    "device": json.loads(device.read_text(encoding="utf-8")) if device.exists() else None,
    "steps": lines(out / "steps.jsonl"),
    "kernels": lines(out / "kernels.jsonl"),
    "block": lines(out / "block.jsonl"),
    "model": lines(out / "model.jsonl"),
}
(out / "gpu_check.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
text = [f"`{json.dumps(result['device'])}`"]
for name in ("steps", "kernels", "block", "model"):
    text += ["", *table(result[name])]
(out / "gpu_check.md").write_text("\n".join(text) + "\n", encoding="utf-8")
print("\n".join(text))
failed = [step["step"] for step in result["steps"] if step["rc"]]
sys.exit(f"gpu_check: failed: {', '.join(map(str, failed))}" if failed else 0)
