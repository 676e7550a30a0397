"""Runs the cases against a configured model and prints its scores: `python -m tests.eval.run MODEL [CASE ...]`.

The servers are EXAI's own in a temporary directory; the keys of providers are those of the environment. Each case is
one call, which costs what its model costs.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path

from exai.app import App, open_app
from exai.errors import ExaiError
from exai.models import LOCAL_OWNER
from exai.settings.load import load_settings
from exai.workflows import WorkflowRequest
from tests.eval.scoring import Case, Score, load_cases, score

GIT = ("git", "-c", "user.name=Eval", "-c", "user.email=eval@example.invalid")


async def run_case(app: App, case: Case, model: str | None, root: Path) -> Score:
    """Write the files of a case below an allowed root, ask the model once, and score its answer."""
    home = root / case.name
    home.mkdir()
    if case.diff is not None:
        await asyncio.to_thread(_commit, home, case.before)
    _write(home, case.texts)
    request = WorkflowRequest(
        LOCAL_OWNER,
        case.prompt,
        files=tuple(str(home / name) for name in case.files),
        model=model,
        diff=case.diff,
        directory=home,
    )
    result = await app.workflows.run(case.tool, request)
    return score(case, [row.finding for row in result.findings if row.by == "model"], result.verdict)


def _commit(home: Path, texts: dict[str, str]) -> None:
    _write(home, texts)
    for command in (("init", "-q"), ("add", "."), ("commit", "-qm", "Before")):
        subprocess.run([*GIT, *command], cwd=home, check=True)


def _write(home: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        (home / name).write_text(text)


async def main(model: str, names: list[str]) -> int:
    cases = [case for case in load_cases() if not names or case.name in names]
    with tempfile.TemporaryDirectory(prefix="exai-eval-") as directory:
        root = Path(directory).resolve() / "files"
        root.mkdir()
        own = {"EXAI_DATA_DIR": str(root.parent / "data"), "EXAI_FILES__ROOTS": str(root), "EXAI_LOG__LEVEL": "error"}
        settings = load_settings(overrides={**own, "EXAI_DATABASE__URL": "", "EXAI_CACHE__URL": ""})
        scores = []
        async with open_app(settings) as app:
            for case in cases:
                scores.append(await run_case(app, case, model, root))
                print(scores[-1].as_text(), flush=True)
    found = sum(len(each.found) for each in scores)
    missed = sum(len(each.missed) for each in scores)
    false = sum(len(each.false) for each in scores)
    print(f"{model}: found {found} of {found + missed}, {false} false")
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 2 or not sys.argv[1]:
        sys.exit("Name a configured model: make eval MODEL=kimi-k3")
    try:
        sys.exit(asyncio.run(main(sys.argv[1], sys.argv[2:])))
    except ExaiError as error:
        sys.exit(str(error))
