"""Fields of a model's description, checked one by one."""

from __future__ import annotations

from typing import Any

from tritloom.firmware.config import ConfigError, ModelShape
from tritloom.gen.models.problems import Problems


def number(config: dict[str, Any], key: str, problems: Problems, default: Any = None, kind: type = int) -> Any:
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind) or value <= 0:
        problems.add(key, "missing" if value is None else f"must be a positive number, not {value!r}", "correct config.json")
        return None
    return value


def shape_of(problems: Problems, **values: Any) -> ModelShape | None:
    if any(v is None for v in values.values()):
        return None
    if values["head_dim"] % 2:
        problems.add("head_dim", f"{values['head_dim']} is odd, but rotary embedding turns pairs", "use a model with an even head_dim")
    if values["heads"] % values["kv_heads"]:
        problems.add(
            "num_key_value_heads", f"{values['kv_heads']} does not divide the {values['heads']} attention heads", "correct config.json"
        )
    try:
        return ModelShape(**values)
    except ConfigError as error:
        if not problems.found:
            problems.add("config.json", str(error), "correct config.json")
        return None


def end_tokens(*values: Any) -> tuple[int, ...]:
    ids: list[int] = []
    for value in values:
        ids += value if isinstance(value, list) else [] if value is None else [value]
    return tuple(sorted(set(ids)))
