"""The engines, one by one, each with the base image; where one cannot be had, its tests say why and are skipped."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.containers import engines
from tests.containers.engines import BASE, Engine

ROOT = Path(__file__).parent.parent.parent
EPOCH = "1700000000"
SCRIPT = """
import json, sys
from pathlib import Path
from igrun.build import build
from igrun.errors import GadgetError
from igrun.oci.store import Store
folder, store, options = sys.argv[1:]
told = []
try:
    with Store.open(store) as place:
        built = build(folder, store=place, tell=told.append, **json.loads(options))
    print(json.dumps({"digest": built.descriptor.digest, "told": told,
                      "attached": [one.artifact_type for one in built.attached]}))
except GadgetError as error:
    print(json.dumps({"error": str(error), "hint": error.hint, "output": getattr(error, "output", ""), "told": told}))
"""


@pytest.fixture(scope="session")
def base() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "igrun" / "containers"
    try:
        return engines.base(cache)
    except engines.MissingError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def spot() -> Iterator[Path]:
    """A folder with a short name that other users get into."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="igrun-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)


def opened(context, base: Path) -> Iterator[Engine]:
    try:
        engine = context.__enter__()
    except engines.MissingError as error:
        pytest.skip(str(error))
    try:
        with base.open("rb") as file:
            done = subprocess.run(
                [engine.program, "import", "-", BASE],
                stdin=file,
                env=engine.env,
                capture_output=True,
                cwd="/",
                **engine.identity,
            )
        assert done.returncode == 0, done.stderr.decode()
        yield engine
    finally:
        context.__exit__(None, None, None)


@pytest.fixture(scope="session")
def docker(base, spot) -> Iterator[Engine]:
    yield from opened(engines.docker(spot / "d"), base)


@pytest.fixture(scope="session")
def podman(base, spot) -> Iterator[Engine]:
    yield from opened(engines.podman(spot / "p"), base)


@pytest.fixture(scope="session")
def rootless(base, spot) -> Iterator[Engine]:
    try:
        with engines.somebody() as user:
            yield from opened(engines.podman(spot / "r", user), base)
    except engines.MissingError as error:
        pytest.skip(str(error))


@pytest.fixture(params=["podman", "docker", "rootless"])
def engine(request: pytest.FixtureRequest) -> Engine:
    return request.getfixturevalue(request.param)


@dataclass
class Builds:
    """Builds by an own process, as the engine's user, on a machine without compilers."""

    folder: Path
    headers: Path

    def command(self, engine: Engine, gadget: Path, **options: object) -> tuple[list[str], dict[str, str]]:
        env = {
            **engine.env,
            "SOURCE_DATE_EPOCH": EPOCH,
            "IGRUN_BUILDER_BASE": BASE,
            "TMPDIR": str(self.scratch(engine)),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        store = self.scratch(engine) / "store"
        words = [sys.executable, "-c", SCRIPT, str(gadget), str(store), json_of(options)]
        return [*as_user(engine), *words], env

    def scratch(self, engine: Engine) -> Path:
        """A folder of the engine's user."""
        path = self.folder / engine.name
        if not path.exists():
            path.mkdir()
            if engine.user:
                os.chown(path, engine.user.pw_uid, engine.user.pw_gid)
        return path

    def run(self, engine: Engine, gadget: Path, **options: object) -> dict[str, object]:
        import json

        command, env = self.command(engine, gadget, **options)
        done = subprocess.run(command, env=env, capture_output=True, text=True, cwd="/")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def as_user(engine: Engine) -> list[str]:
    """The words before a command that is to run as the engine's user."""
    if engine.user is None:
        return []
    # Where the Python of the tests is in root's home the user may read it; writing and all else is a user's
    extra = "-all,+dac_read_search"
    who = [f"--reuid={engine.user.pw_uid}", f"--regid={engine.user.pw_gid}", "--clear-groups"]
    return ["/usr/bin/setpriv", *who, f"--inh-caps={extra}", f"--ambient-caps={extra}", "--"]


def json_of(options: dict[str, object]) -> str:
    import json

    return json.dumps(options)


@pytest.fixture
def builds(tmp_path_factory, spot) -> Iterator[Builds]:
    import tempfile

    with tempfile.TemporaryDirectory(dir=spot, ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Builds(Path(name), ROOT / "sdk/include")


@pytest.fixture
def gadget(builds: Builds) -> Callable[..., Path]:
    """Copies a gadget of this checkout to where every user may read it."""
    import shutil

    def copy(name: str = "trace_open", to: str = "gadget") -> Path:
        target = builds.folder / to
        shutil.copytree(ROOT / "gadgets" / name, target)
        return target

    return copy
