"""gpu_check_report.py OUT: joins what the steps of gpu_check.sh left in OUT into one JSON and one table."""

import json
import sys
from pathlib import Path


def lines(path: Path) -> list[dict[str, object]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table(rows: list[dict[str, object]]) -> list[str]:
    if not rows:
        return ["(none)"]
    keys = list(rows[0])
    cells = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (keys, ["---"] * len(keys), *cells)]


out = Path(sys.argv[1])
device = out / "device.json"
result = {
    "device": json.loads(device.read_text(encoding="utf-8")) if device.exists() else None,
    "steps": lines(out / "steps.jsonl"),
    "kernels": lines(out / "kernels.jsonl"),
    "block": lines(out / "block.jsonl"),
}
(out / "gpu_check.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
text = [f"`{json.dumps(result['device'])}`"]
for name in ("steps", "kernels", "block"):
    text += ["", *table(result[name])]
(out / "gpu_check.md").write_text("\n".join(text) + "\n", encoding="utf-8")
print("\n".join(text))
failed = [step["step"] for step in result["steps"] if step["rc"]]
sys.exit(f"gpu_check: failed: {', '.join(map(str, failed))}" if failed else 0)
