"""`make test-containers`: the image, the stack of compose.yaml, and the whole suite on containers.

Runs where an engine answers, or where root and apt can bring one; elsewhere it says that nothing was tested, and why.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from tests.containers.engine import Engine, NoEngine, open_engine
from tests.containers.images import STAND_INS, provide
from tests.support.backend import POSTGRES_IMAGE, REDIS_IMAGE

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / ".venv" / "containers"
INTERRUPTED = 130
END_LIMIT_S = 120
STACK = ("-n", "0", "-q", "-m", "heavy", "tests/containers")


def main() -> int:
    """Run what is asked for; returns the first exit status that is not 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stack", action="store_true", help="only the image and the stack of compose.yaml")
    parser.add_argument("--suite", action="store_true", help="only the suite on containers")
    options, arguments = parser.parse_known_args()
    wanted = [name for name in ("stack", "suite") if getattr(options, name)] or ["stack", "suite"]
    signal.signal(signal.SIGTERM, interrupt)
    # Also in the background of a shell, which makes its programs ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with open_engine(KEPT) as engine:
            print(f"containers are tested on {engine.description}", flush=True)
            return next((status for each in wanted if (status := run(engine, each, arguments))), 0)
    except NoEngine as reason:
        print(f"containers are not tested: {reason}")
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED


def interrupt(number: int, frame: FrameType | None) -> None:
    """Have SIGTERM end the program as SIGINT does, with everything that it started."""
    raise KeyboardInterrupt


def run(engine: Engine, wanted: str, arguments: list[str]) -> int:
    """Run the tests of the stack or the suite; returns pytest's exit status."""
    images = {"stack": set(STAND_INS) - {POSTGRES_IMAGE, REDIS_IMAGE}, "suite": {POSTGRES_IMAGE, REDIS_IMAGE}}
    for image in sorted(images[wanted], key=lambda name: (name != "python:3.13-slim", name)):
        print(f"  {image}: {provide(engine, image, KEPT)}", flush=True)
    variables = {**os.environ, **engine.variables}
    if wanted == "suite":
        variables["EXAI_TEST_BACKEND"] = "docker"
    command = [sys.executable, "-m", "pytest", *(STACK if wanted == "stack" else ("-q",)), *arguments]
    with subprocess.Popen(command, cwd=ROOT, env=variables) as tests:
        try:
            return tests.wait()
        except KeyboardInterrupt:
            # The tests remove their containers first.
            tests.send_signal(signal.SIGINT)
            try:
                tests.wait(END_LIMIT_S)
            except subprocess.TimeoutExpired:
                tests.kill()
            raise


if __name__ == "__main__":
    sys.exit(main())
