"""What the environment and a `.env` file say, before any of it is judged.

The invariant is that nothing is chosen in silence: the environment wins over the file, an `EXAI_` name wins over the
older names of the same setting, two older names that disagree are refused, and every value keeps the name it was
written under. Imports nothing heavy, because `exai connect` has to answer within a blink.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from exai.errors import ConfigError

ENV_FILE = Path(".env")
MAX_ENV_FILE_BYTES = 1_048_576

OLDER_NAMES: Mapping[str, tuple[str, ...]] = {
    "EXAI_DATABASE__URL": ("SUPABASE_DB_URL", "DATABASE_URL"),
    "EXAI_CACHE__URL": ("REDIS_URL",),
    "EXAI_CACHE__IDLE_HOURS": ("CONVERSATION_TIMEOUT_HOURS",),
    "EXAI_SERVER__HOST": ("EXAI_WS_HOST",),
    "EXAI_SERVER__PORT": ("EXAI_WS_PORT",),
    "EXAI_PROVIDERS__KIMI__API_KEY": ("KIMI_API_KEY", "MOONSHOT_API_KEY"),
    "EXAI_PROVIDERS__GLM__API_KEY": ("GLM_API_KEY", "ZAI_API_KEY", "ZHIPUAI_API_KEY"),
    "EXAI_LOG__LEVEL": ("LOG_LEVEL",),
    "EXAI_TOOL_TIMEOUT_S": ("WORKFLOW_TOOL_TIMEOUT_SECS",),
}


@dataclass(frozen=True, slots=True)
class Value:
    """A value under the name it was written; `origin` is `environment`, `command line` or the file's name."""

    name: str
    text: str
    origin: str

    def __repr__(self) -> str:
        """Name and origin only: the text may be a key."""
        return f"Value({self.name!r}, origin={self.origin!r})"


@dataclass(frozen=True, slots=True)
class Reading:
    """Every non-empty value by the name it was written under; `env_file` is the file that was read, or None."""

    values: Mapping[str, Value]
    env_file: Path | None

    def find(self, variable: str) -> Value | None:
        """Return what is set for an `EXAI_` variable under any of its names.

        Raises ConfigError when only older names are set and they disagree: either could be the forgotten one.
        """
        if variable in self.values:
            return self.values[variable]
        older = [self.values[name] for name in OLDER_NAMES.get(variable, ()) if name in self.values]
        if len({value.text for value in older}) > 1:
            raise ConfigError(
                " and ".join(value.name for value in older),
                "hold different values for the same setting",
                f"Keep one of them, or set {variable}, which wins over both",
            )
        return older[0] if older else None


def read_environment(
    environ: Mapping[str, str] | None = None,
    env_file: Path | None = ENV_FILE,
    overrides: Mapping[str, str] | None = None,
) -> Reading:
    """Collect the values of `overrides` (the command line), `environ` (default: the process's) and `env_file`.

    Empty values count as unset. A missing file is no error; one that cannot be read or understood is.
    """
    file_values = _read_file(env_file) if env_file else None
    values = {value.name: value for value in file_values or ()}
    layers = [("environment", os.environ if environ is None else environ), ("command line", overrides or {})]
    for origin, layer in layers:
        for name, text in layer.items():
            if text.strip():
                values[name] = Value(name, text.strip(), origin)
    return Reading(values, env_file if file_values is not None else None)


def _read_file(path: Path) -> list[Value] | None:
    """Return the file's values, the last of a repeated name counting, or None when there is no such file.

    Values are taken literally: `${...}` in a password stays what it is.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_ENV_FILE_BYTES + 1)
        if len(data) > MAX_ENV_FILE_BYTES:
            raise ConfigError(
                str(path), f"is larger than {MAX_ENV_FILE_BYTES} bytes", "Is it really a list of variables?"
            )
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(
            str(path), f"cannot be read ({error.strerror})", "Correct its permissions or remove it"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), f"is not UTF-8 text (byte {error.start})", "Save it as UTF-8") from None
    return _parse(path, text)


def _parse(path: Path, text: str) -> list[Value]:
    # Imported here because most starts of the bridge find no file to parse.
    from dotenv.parser import parse_stream

    values = []
    for binding in parse_stream(StringIO(text)):
        if binding.error:
            lead = len(binding.original.string) - len(binding.original.string.lstrip())
            line = binding.original.line + binding.original.string[:lead].count("\n")
            raise ConfigError(f"{path}, line {line}", "is not of the form NAME=value", "Correct or remove the line")
        if binding.key and binding.value and binding.value.strip():
            values.append(Value(binding.key, binding.value.strip(), str(path)))
    return values
