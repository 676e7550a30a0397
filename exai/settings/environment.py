"""Reads the environment, a directory of secrets and a `.env` file, without validating the values.

Invariant: no choice between values is silent. The environment wins over a secret's file and that over `.env`, an
`EXAI_` name wins over the older names of the same setting, two older names that disagree are refused, and every value
keeps the name under which it was written. A `.env` found in the working directory may belong to a project of another
author, so its values are marked, and `exai connect` does not read it at all. This module imports nothing heavy, because
that command must start fast.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Final, Literal, TypeAlias

from exai.errors import ConfigError

ENV_FILE = Path(".env")
ENV_FILE_VARIABLE: Final = "EXAI_ENV_FILE"
"""Names the file to read instead of the one in the working directory; `--env-file` sets it."""

SECRETS_DIR_VARIABLE: Final = "EXAI_SECRETS_DIR"
"""Names a directory in which each file is named for a variable and holds its value, as container platforms and systemd
provide secrets."""

NOT_SETTINGS: Final = (ENV_FILE_VARIABLE, SECRETS_DIR_VARIABLE)
"""Variables that say where settings are, and so cannot be in a `.env` file themselves."""

SECRET_NAME: Final = re.compile(r"[A-Z][A-Z0-9_]*")
MAX_SECRET_BYTES: Final = 65_536

MAX_ENV_FILE_BYTES = 1_048_576

Search: TypeAlias = Literal["working directory", "checkout"]
"""Where to look for a `.env` if none is named: `checkout` is the directory of EXAI's own source, if it has one."""

DESCRIBED: Final = ("kimi", "glm", "deepseek", "openrouter", "qwen")
"""Providers that need only a key; an endpoint has another name."""

OLDER_NAMES: Mapping[str, tuple[str, ...]] = {
    "EXAI_DATABASE__URL": ("SUPABASE_DB_URL", "DATABASE_URL"),
    "EXAI_CACHE__URL": ("REDIS_URL",),
    "EXAI_CACHE__IDLE_HOURS": ("CONVERSATION_TIMEOUT_HOURS",),
    "EXAI_SERVER__HOST": ("EXAI_WS_HOST",),
    "EXAI_SERVER__PORT": ("EXAI_WS_PORT",),
    "EXAI_PROVIDERS__KIMI__API_KEY": ("KIMI_API_KEY", "MOONSHOT_API_KEY"),
    "EXAI_PROVIDERS__GLM__API_KEY": ("GLM_API_KEY", "ZAI_API_KEY", "ZHIPUAI_API_KEY"),
    "EXAI_PROVIDERS__DEEPSEEK__API_KEY": ("DEEPSEEK_API_KEY",),
    "EXAI_PROVIDERS__OPENROUTER__API_KEY": ("OPENROUTER_API_KEY",),
    "EXAI_PROVIDERS__QWEN__API_KEY": ("DASHSCOPE_API_KEY",),
    "EXAI_LOG__LEVEL": ("LOG_LEVEL",),
    "EXAI_TOOL_TIMEOUT_S": ("WORKFLOW_TOOL_TIMEOUT_SECS",),
}


@dataclass(frozen=True, slots=True)
class Value:
    """A value under the name as written; `origin` is `environment`, `command line` or the file's name.

    `is_found` marks a value of a file that was not named explicitly: it may belong to a project of another author.
    """

    name: str
    text: str
    origin: str
    is_found: bool = False

    def __repr__(self) -> str:
        """Return name and origin only: the text may be a key."""
        return f"Value({self.name!r}, origin={self.origin!r})"


@dataclass(frozen=True, slots=True)
class Reading:
    """All non-empty values by name as written; `env_file` is the file that was read, or None."""

    values: Mapping[str, Value]
    env_file: Path | None

    def find(self, variable: str) -> Value | None:
        """Return the value of an `EXAI_` variable under any of its names.

        Raises ConfigError if only older names are set and they disagree: either could be the outdated one.
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
    env_file: Path | Search | None = "working directory",
    overrides: Mapping[str, str] | None = None,
) -> Reading:
    """Collect values: of `overrides` (the command line), `environ` (default: the process's), secrets, a `.env` file.

    `env_file` is the file, None for none, or where to look unless EXAI_ENV_FILE names one. Empty values count as
    unset. A missing file is an error only if EXAI_ENV_FILE names it; a file that cannot be parsed always is. A secret's
    file that cannot be read is an error, and so is a missing directory that EXAI_SECRETS_DIR names.
    """
    environ = os.environ if environ is None else environ
    path, is_found = _file_to_read(environ, env_file) if isinstance(env_file, str) else (env_file, False)
    file_values = _read_file(path, is_found=is_found) if path else None
    if file_values is None and path is not None and isinstance(env_file, str) and named_env_file(environ):
        raise ConfigError(ENV_FILE_VARIABLE, f"names {path}, which does not exist", "Correct the path, or unset it")
    values = {value.name: value for value in file_values or ()}
    values |= {value.name: value for value in _read_secrets(environ)}
    for origin, layer in (("environment", environ), ("command line", overrides or {})):
        for name, text in layer.items():
            if text.strip():
                values[name] = Value(name, text.strip(), origin)
    return Reading(values, path if file_values is not None else None)


def _read_secrets(environ: Mapping[str, str]) -> list[Value]:
    """Return the values in the directory that EXAI_SECRETS_DIR names, except of files not named like a variable."""
    named = environ.get(SECRETS_DIR_VARIABLE, "").strip()
    if not named:
        return []
    directory = Path(named).expanduser()
    try:
        paths = sorted(path for path in directory.iterdir() if SECRET_NAME.fullmatch(path.name))
    except OSError as error:
        raise ConfigError(
            SECRETS_DIR_VARIABLE, f"names {directory}, which cannot be listed ({error.strerror})", "Correct or unset it"
        ) from error
    return [value for path in paths if (value := _read_secret(path)).text]


def _read_secret(path: Path) -> Value:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SECRET_BYTES + 1)
        text = data.decode("utf-8").strip()
    except OSError as error:
        raise ConfigError(
            str(path), f"cannot be read ({error.strerror})", "Let EXAI's user read the file, or remove it"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), f"is not UTF-8 text (byte {error.start})", "Save it as UTF-8") from None
    if len(data) > MAX_SECRET_BYTES:
        raise ConfigError(str(path), f"is larger than {MAX_SECRET_BYTES} bytes", "It holds one value and nothing else")
    return Value(path.name, text, str(path))


def named_env_file(environ: Mapping[str, str]) -> Path | None:
    """Return the file that EXAI_ENV_FILE names, or None."""
    named = environ.get(ENV_FILE_VARIABLE, "").strip()
    return Path(named).expanduser() if named else None


def checkout_env_file() -> Path | None:
    """Return the path of the `.env` beside EXAI's own source; None if EXAI was installed as a package."""
    root = Path(__file__).resolve().parents[2]
    is_checkout = (root / "pyproject.toml").is_file() and (root / "alembic.ini").is_file()
    return root / ENV_FILE if is_checkout else None


def _file_to_read(environ: Mapping[str, str], search: Search) -> tuple[Path | None, bool]:
    """Return the file, and whether it was found instead of named explicitly."""
    named = named_env_file(environ)
    if named is not None:
        return named, False
    own = checkout_env_file()
    if search == "checkout":
        return own, False
    return ENV_FILE, own is None or own.parent != Path.cwd()


def _read_file(path: Path, *, is_found: bool) -> list[Value] | None:
    """Return the file's values, the last one of a repeated name, or None if there is no such file.

    Values are taken literally: `${...}` in a password is not expanded.
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
    return _parse(path, text, is_found=is_found)


def _parse(path: Path, text: str, *, is_found: bool) -> list[Value]:
    # Imported late because most starts of the bridge find no file to parse.
    from dotenv.parser import parse_stream

    values = []
    for binding in parse_stream(StringIO(text)):
        if binding.error:
            lead = len(binding.original.string) - len(binding.original.string.lstrip())
            line = binding.original.line + binding.original.string[:lead].count("\n")
            raise ConfigError(f"{path}, line {line}", "is not of the form NAME=value", "Correct or remove the line")
        if binding.key in NOT_SETTINGS:
            raise ConfigError(
                f"{path}: {binding.key}",
                "cannot be set in a .env file",
                "Set it in the environment, or remove it",
            )
        if binding.key and binding.value and binding.value.strip():
            values.append(Value(binding.key, binding.value.strip(), str(path), is_found))
    return values
