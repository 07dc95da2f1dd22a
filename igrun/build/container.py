"""Builds in containers, by the command line of docker or podman, with or without root.

The command line serves them all: a socket is reached by `DOCKER_HOST` or a docker context, podman needs no socket. Each
command gets a container of its own, without network, capabilities or a writable file system but `/tmp` and `/out`:

    /work               the gadget's folder and its include folders, read-only
    /igrun/include      the SDK's headers, read-only
    /out                what is made
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from igrun import data
from igrun.build.places import Commands, first_problem, read, together, which
from igrun.build.recipe import Recipe
from igrun.dataclass import dataclass
from igrun.errors import BuildError, ParamError

ENGINES = ("docker", "podman")
PULL = ("always", "missing", "never")
DOCKERFILE = "Dockerfile.builder"
# The headers are not where objects say they are: clang would put lines of them into objects, as it cannot elsewhere
WORK, HEADERS, OUT = "/work", "/igrun/include", "/out"
LABEL = "igrun.build"
ANSWER_S = 60  # an engine that does not answer for so long is not there
# What the compilers of guests get from the environment
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
SETTINGS = (*PROXIES, "GOPROXY", "GOPRIVATE", "GONOSUMDB", "GOSUMDB", "GOFLAGS")
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Engine:
    """A container engine that answers. rootless: its root is this user."""

    path: str
    rootless: bool
    env: Mapping[str, str]

    @classmethod
    def find(cls, env: Mapping[str, str]) -> Engine:
        """$CONTAINER_ENGINE, else docker, else podman. BuildError: none of them answers."""
        wish = env.get("CONTAINER_ENGINE", "")
        problems = []
        for name in [wish] if wish else ENGINES:
            path = which(name, env)
            try:
                if not path:
                    raise BuildError("it is not installed")
                return cls(path, is_rootless(cls(path, False, env)), env)
            except BuildError as error:
                problems.append(f"{name}: {error}")
        raise BuildError(
            f"no container engine: {'; '.join(problems)}", hint="install docker or podman, or clang and libbpf-dev"
        )

    @property
    def name(self) -> str:
        return Path(self.path).name

    def ask(self, *words: str, timeout_s: float | None = None) -> str:
        """What a command of the engine prints. BuildError: it failed."""
        import subprocess

        try:
            done = subprocess.run(
                [self.path, *words],
                capture_output=True,
                stdin=subprocess.DEVNULL,
                env=self.env,
                errors="replace",
                timeout=timeout_s,
            )
        except OSError as error:
            raise BuildError(f"cannot start {self.path}: {error.strerror}") from None
        except subprocess.TimeoutExpired:
            raise BuildError(f"{self.name} {words[0]} does not answer") from None
        if done.returncode:
            said = done.stderr or done.stdout
            raise BuildError(f"{self.name} {words[0]}: {first_problem(said) or done.returncode}", output=said)
        return done.stdout.strip()

    def image(self, name: str) -> str:
        """The id of an image that is there, "" if it is not."""
        try:
            return self.ask("image", "inspect", "--format", "{{.Id}}", name, timeout_s=ANSWER_S)
        except BuildError as error:
            if "no such" in error.output.lower() or "not known" in error.output.lower():
                return ""
            raise

    def container(self, words: Sequence[str]) -> _Created:
        """A container that was made and not started; use it in a `with`. It is gone after that, whatever happens."""
        return _Created(self, words)


class _Created:
    def __init__(self, engine: Engine, words: Sequence[str]) -> None:
        import secrets

        self.name = f"igrun-build-{secrets.token_hex(8)}"
        self.done = False  # it ended by itself, and is removed by the engine
        self._engine, self._words = engine, words

    def __enter__(self) -> _Created:
        import subprocess

        engine = self._engine
        command = [engine.path, "create", "--rm", "--name", self.name, "--label", f"{LABEL}=1", *self._words]
        # In a session of its own: Ctrl-C must not end it half-way, when nobody knows whether there is a container
        process = subprocess.Popen(
            command,
            env=engine.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            errors="replace",
            start_new_session=True,
        )
        try:
            said = process.communicate()[1]
        except BaseException:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=ANSWER_S)
            self.remove()
            raise
        if process.returncode:
            self.remove()
            far = "bind source path does not exist" in said
            hint = f"{engine.name} must run on this machine; see DOCKER_HOST" if far else ""
            raise BuildError(f"{engine.name} create: {first_problem(said)}", output=said, hint=hint)
        return self

    def __exit__(self, *exc: object) -> None:
        if not self.done:
            self.remove()

    def remove(self) -> None:
        # It may be gone already, or was never there; both end as wanted
        with contextlib.suppress(BuildError):
            self._engine.ask("rm", "--force", "--volumes", self.name, timeout_s=ANSWER_S)


def is_rootless(engine: Engine) -> bool:
    """Whether the engine runs without root. BuildError: it does not answer."""
    is_podman = "podman" in engine.ask("--version", timeout_s=ANSWER_S).lower()
    wanted = "{{.Host.Security.Rootless}}" if is_podman else "{{json .SecurityOptions}}"
    said = engine.ask("info", "--format", wanted, timeout_s=ANSWER_S)
    return said == "true" if is_podman else "rootless" in said


# ---------------------------------------------------------------------------------------------- the image


@dataclass(frozen=True, slots=True)
class Builder:
    """The image that a build runs in. name: as it was asked for; id: what that stood for."""

    name: str
    id: str
    digest: str = ""


def builder(engine: Engine, wish: str, pull: str, scratch: Path, tell: Tell) -> Builder:
    """The image named, pulled by the policy; without a name igrun's own, which is built where it is missing.

    pull: always, missing or never
    """
    if pull not in PULL:
        raise ParamError(
            "builder-image-pull",
            pull,
            f"invalid value for --builder-image-pull: {pull}. Valid values are {','.join(PULL)}",
        )
    if not wish:
        return own_builder(engine, pull, scratch, tell)
    found = engine.image(wish) if pull != "always" else ""
    if not found and pull == "never":
        raise BuildError(
            f"builder image {wish} is not there for {engine.name}", hint="--builder-image-pull=missing pulls it"
        )
    if not found:
        tell(f"Pulling builder image {wish} with {engine.name}")
        try:
            engine.ask("pull", wish)
        except BuildError as error:
            hint = "an image that was built here needs --builder-image-pull=missing"
            raise BuildError(
                f"builder image {wish}: {error}", output=error.output, hint=hint if engine.image(wish) else error.hint
            ) from None
        found = engine.image(wish)
    return Builder(wish, found, digest_of(engine, found))


def digest_of(engine: Engine, image: str) -> str:
    """The digest under which a registry has the image, "" if none has."""
    try:
        said = engine.ask("image", "inspect", "--format", "{{range .RepoDigests}}{{println .}}{{end}}", image)
    except BuildError:
        return ""
    return next((line.rpartition("@")[2] for line in said.split() if "@sha256:" in line), "")


def own_builder(engine: Engine, pull: str, scratch: Path, tell: Tell) -> Builder:
    """The image of Dockerfile.builder, built once per engine. $IGRUN_BUILDER_BASE: what it is based on."""
    from hashlib import sha256

    path = data.find(DOCKERFILE)
    if path is None:
        raise BuildError(f"{DOCKERFILE} is missing from this installation", hint="install igrun again")
    text = path.read_bytes()
    base = engine.env.get("IGRUN_BUILDER_BASE", "")
    name = f"localhost/igrun-builder:{sha256(text + base.encode()).hexdigest()[:12]}"
    found = engine.image(name)
    if not found:
        if pull == "never":
            raise BuildError(
                f"builder image {name} is not there for {engine.name}", hint="without --builder-image-pull it is built"
            )
        tell(f"Building the builder image {name} with {engine.name}; this is done once")
        context = scratch / "builder"
        context.mkdir()
        (context / "Dockerfile").write_bytes(text)
        arguments = ["--build-arg", f"BASE={base}"] if base else []
        # It fetches packages; the host's network is there even where an engine has no other
        engine.ask("build", "--network", "host", "--tag", name, *arguments, str(context))
        found = engine.image(name)
    return Builder(name, found)


# ---------------------------------------------------------------------------------------------- the place


@dataclass(frozen=True, slots=True)
class Container:
    """Containers of one image, one for each command."""

    engine: Engine
    image: Builder
    folder: str
    made: Path
    mounts: tuple[tuple[Path, str], ...]
    headers: str = HEADERS
    out: str = OUT

    @classmethod
    def of(cls, engine: Engine, image: Builder, recipe: Recipe, headers: Path, scratch: Path) -> Container:
        """For one gadget. scratch: an empty folder of this machine"""
        made = scratch / "out"
        made.mkdir()
        made.chmod(0o777)  # by whatever number the engine knows this user; nobody else gets into scratch
        root, folders = shared(recipe)
        mounts = [(path, os.path.normpath(f"{WORK}/{place}")) for path, place in folders]
        return cls(
            engine,
            image,
            os.path.normpath(f"{WORK}/{recipe.folder.relative_to(root)}"),
            made,
            (*mounts, (headers, HEADERS)),
        )

    def which(self, name: str) -> str:
        return name

    def multiarch(self) -> Sequence[str]:
        # the machine that the image is for is not known; a folder that is not there does no harm
        return [f"/usr/include/{machine}-linux-gnu" for machine in ("x86_64", "aarch64")]

    def run(
        self, commands: Commands, variables: Mapping[str, str], *, settings: bool = False, network: bool = False
    ) -> str:
        more = ["--env", "HOME=/tmp", "--env", "LC_ALL=C"]
        for name, value in variables.items():
            more += ["--env", f"{name}={value}"]
        if settings:
            # without a value: the engine takes it from its environment, so that it is in no list of processes
            more += [word for name in SETTINGS if name in self.engine.env for word in ("--env", name)]
        if not network:
            more += ["--network", "none"]
        with contextlib.ExitStack() as stack:
            containers = [
                stack.enter_context(
                    self.engine.container(
                        [*self.isolation(), *more, "--entrypoint", words[0], self.image.id, *words[1:]]
                    )
                )
                for words in commands.values()
            ]
            said = together(
                {
                    what: [self.engine.path, "start", "--attach", one.name]
                    for what, one in zip(commands, containers, strict=True)
                },
                self.made,
                self.engine.env,
            )
            for one in containers:
                one.done = True
        return said

    def isolation(self) -> Iterator[str]:
        """The words that make a container small."""
        user = "0:0" if self.engine.rootless else f"{os.getuid()}:{os.getgid()}"
        yield from ("--user", user, "--workdir", self.folder, "--read-only", "--tmpfs", "/tmp:exec,mode=1777")
        yield from ("--cap-drop", "ALL", "--security-opt", "no-new-privileges")
        # SELinux would refuse the folders, and giving them labels would change the user's files
        yield from ("--security-opt", "label=disable")
        for source, target in self.mounts:
            yield from mount(source, target, "readonly")
        yield from mount(self.made, OUT)

    def read(self, paths: Iterable[str]) -> dict[str, bytes]:
        known: dict[str, bytes] = {}
        others = []
        for path in paths:
            place = os.path.normpath(f"{self.folder}/{path}" if not path.startswith("/") else path)
            source = self.here(place)
            if source:
                known[path] = read(source.parent, [source.name])[source.name]
            else:
                others.append(path)
        return known | self.fetched(others)

    def here(self, place: str) -> Path | None:
        """Where a file of a mounted folder is on this machine."""
        for source, target in sorted(self.mounts, key=lambda one: -len(one[1])):
            if place.startswith(f"{target}/"):
                return source / place[len(target) + 1 :]
        return None

    def fetched(self, paths: Sequence[str]) -> dict[str, bytes]:
        """Files of the image."""
        import tarfile

        if not paths:
            return {}
        (self.made / "inputs").write_text("".join(f"{path}\n" for path in paths))
        command = ["tar", "-chf", f"{OUT}/inputs.tar", "-T", f"{OUT}/inputs"]
        self.run({"reading the headers of the builder image": command}, {})
        found = {}
        try:
            with tarfile.open(self.made / "inputs.tar") as tar:
                for path in paths:
                    file = tar.extractfile(path.lstrip("/"))
                    found[path] = file.read() if file else b""
        except (tarfile.TarError, KeyError, OSError) as error:
            raise BuildError(f"cannot read the headers of builder image {self.image.name}: {error}") from None
        return found


def shared(recipe: Recipe) -> tuple[Path, list[tuple[Path, str]]]:
    """The folder above the gadget's and its includes; the folders to mount and where they are, relative to it."""
    folders = {recipe.folder: recipe.folder}
    for name in recipe.includes:
        path = Path(os.path.normpath(recipe.folder / name))
        folders[path] = path.resolve()
    root = Path(os.path.commonpath(list(folders)))
    needed: list[tuple[Path, str]] = []
    for path in sorted(folders):
        inside = any(
            folders[path] == source / path.relative_to(root / place)
            for source, place in needed
            if path.is_relative_to(root / place)
        )
        if not inside:
            needed.append((folders[path], str(path.relative_to(root))))
    return root, needed


def mount(source: Path, target: str, *more: str) -> tuple[str, str]:
    """The words for a folder of this machine."""
    if any(mark in str(source) for mark in ',"\n'):
        raise BuildError(f"{str(source)!r} cannot be given to a container", hint="its name has a comma or a quote")
    return "--mount", ",".join(("type=bind", f"source={source}", f"target={target}", *more))
