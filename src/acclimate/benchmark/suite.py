"""A suite: pairs of domains, methods and seeds in one TOML file, and the runs that they ask for.

The file is explained in docs/verbs/benchmark.md. Its sections [model], [augment], [train], [schedule] and [adapt] are
those of a job; a pair and a method may have them too, and what stands nearer to the run wins: method over pair over
suite. No term of adaptation is on but those that the file names.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from acclimate.config import Config, DataConfig, Options, Prose, ScenesConfig, nothing, overlay, parse, read
from acclimate.errors import AcclimateError
from acclimate.run import digest

SHIPPED = Path(__file__).parent.parent / "suites"
"""The suites that come with the package."""

ROOT = "ACCLIMATE_DATA"
"""Environment variable: the folder that a suite's paths are relative to."""

Role = Literal["source-only", "adapted", "oracle"]


class Sections(Options):
    """Parts of a job's configuration, as TOML has them; checked once they are put together.

    The word "none" takes an option away there, as it does everywhere.
    """

    model: dict[str, Any] = Field(default_factory=dict)
    augment: dict[str, Any] = Field(default_factory=dict)
    train: dict[str, Any] = Field(default_factory=dict)
    schedule: dict[str, Any] = Field(default_factory=dict)
    adapt: dict[str, Any] = Field(default_factory=dict)

    def sections(self) -> dict[str, dict[str, Any]]:
        return {name: getattr(self, name) for name in Sections.model_fields}


class Need(Options):
    """A data set that must be there: what it is, where in the root it goes, and who has it."""

    what: str
    paths: tuple[Path, ...]
    """Files and folders below the root that show that it is there."""
    url: str
    licence: str


class Pair(Sections):
    """Two domains. `target` is the labelled training part of the target: its images are what an adaptation sees, as a
    list without labels, and its labels train the oracle alone. With `scenes` the sets are generated instead."""

    source: DataConfig | None = None
    target: DataConfig | None = None
    source_test: DataConfig | None = None
    target_test: DataConfig | None = None
    scenes: ScenesConfig | None = None
    needs: tuple[str, ...] = ()
    fallback: bool = False
    """Taken only where the data of no other pair is there."""

    @model_validator(mode="after")
    def _has_data(self) -> Pair:
        named = (self.source, self.target, self.target_test)
        if self.scenes is None and None in named:
            raise ValueError("a pair needs `source`, `target` and `target_test`, or `scenes`")
        if self.scenes is not None and any((*named, self.source_test)):
            raise ValueError("a pair has `scenes` or data sets of its own, not both")
        return self


class Method(Sections):
    """One way to train, compared with the others.

    `source-only` trains on on the source for as long as an adaptation takes and sees no target image, `adapted` sees
    the target's images, `oracle` trains on its labels for as long as source training and adaptation together.
    """

    role: Role
    against: str | None = None
    """The method that its paired difference is taken to; by default the suite's `reference`."""


class Suite(Sections):
    """What is compared, on what."""

    name: str
    title: str = ""
    note: Annotated[str, Prose()] = Field(default="", max_length=4000)
    """Printed below the table: what a reader must know to judge it."""
    root: Path = Path("data")
    csv: Path | None = None
    """Where the rows go, relative to the suite's file; by default `results.csv` in the output folder."""
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    reference: str
    """The method that the others are compared with."""
    test_images: int | None = Field(default=None, ge=1)
    """Test images of a domain, evenly spread; all where it is absent."""
    needs: dict[str, Need] = Field(default_factory=dict)
    pairs: dict[str, Pair] = Field(min_length=1)
    methods: dict[str, Method] = Field(min_length=1)
    published: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Pair -> method -> published AP50 in points; methods that the suite does not run have a row of their own."""
    published_from: Annotated[str, Prose()] = Field(default="", max_length=4000)

    @model_validator(mode="after")
    def _names_lead_somewhere(self) -> Suite:
        named = [("reference", self.reference)]
        named += [(f"methods.{name}.against", one.against) for name, one in self.methods.items() if one.against]
        for key, method in named:
            if method not in self.methods:
                raise ValueError(f"{key} names {method!r}, which is no method here ({', '.join(self.methods)})")
        if self.methods[self.reference].role == "oracle":
            raise ValueError(f"reference: {self.reference!r} is an oracle; name a source-only method")
        for name, pair in self.pairs.items():
            for need in pair.needs:
                if need not in self.needs:
                    raise ValueError(f"pairs.{name}.needs names {need!r}; add [needs.{need}]")
        for name in self.published:
            if name not in self.pairs:
                raise ValueError(f"published names {name!r}, which is no pair here ({', '.join(self.pairs)})")
        return self

    def against(self, method: str) -> str | None:
        """What a method is compared with; None for the reference itself."""
        other = self.methods[method].against or self.reference
        return None if other == method else other


def shipped() -> list[str]:
    """Names of the suites that come with the package."""
    return sorted(file.stem for file in SHIPPED.glob("*.toml"))


def find(suite: str | Path) -> Path:
    """The file of a suite: a path, or the name of one that comes with the package.

    Raises:
        AcclimateError: there is neither.
    """
    path = Path(suite)
    if path.is_file():
        return path
    inside = SHIPPED / f"{suite}.toml"
    if path.name == str(suite) and inside.is_file():
        return inside
    raise AcclimateError(f"{suite}: no such suite; give a TOML file, or one of {', '.join(shipped())}")


def load(suite: str | Path) -> Suite:
    """Read a suite; see `find`.

    Raises:
        AcclimateError: there is none, it is not TOML, or a key or value does not fit; also in what a method's or a
            pair's sections come to.
    """
    path = find(suite)
    found = parse(Suite, {"name": path.stem, **read(path)}, where=str(path))
    if found.csv is not None:
        found = found.model_copy(update={"csv": path.parent / found.csv})
    for pair in found.pairs:
        for method in found.methods:
            configuration(found, pair, method, where=f"{path}: {method} on {pair}")
    return found


def configuration(suite: Suite, pair: str, method: str, seed: int = 0, where: str = "") -> Config:
    """A run's settings, without its data.

    Args:
        suite: what is compared.
        pair: a name of its pairs.
        method: a name of its methods.
        seed: of everything random.
        where: how the message begins.

    Raises:
        AcclimateError: the sections do not fit together.
    """
    chosen = suite.methods[method]
    values = _over(suite.sections(), suite.pairs[pair].sections(), chosen.sections())
    config = parse(Config, {"seed": seed, **values}, where=where or suite.name)
    return config if chosen.role == "adapted" else _blind(config)


def source_configuration(suite: Suite, pair: str, method: str, seed: int = 0) -> Config:
    """Settings of the source training that a method starts from: the pair's, with the method's [model] and [train], so
    that methods which agree in these share it.

    Args:
        suite: what is compared.
        pair: a name of its pairs.
        method: a name of its methods.
        seed: of everything random.
    """
    own = {name: section for name, section in suite.methods[method].sections().items() if name in {"model", "train"}}
    values = _over(suite.sections(), suite.pairs[pair].sections(), own)
    sections = {name: values[name] for name in ("model", "augment", "train")}
    return _blind(parse(Config, {"seed": seed, **sections}, where=suite.name))


def _over(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Tables put over each other, the last one on top. Below them all is no method but the source's labels: a suite
    says what a method is, so no default may add to it."""
    sections = {name: off for name, off in nothing().items() if off is None}
    return functools.reduce(overlay, parts, {"adapt": sections})


def _blind(config: Config) -> Config:
    """A job whose source images are not changed by what the target looks like."""
    return config.model_copy(update={"augment": config.augment.without_target()})


@dataclass(frozen=True)
class Place:
    """Where a suite's data and results are.

    Attributes:
        root: folder that the suite's data paths are relative to.
        out: folder of the runs.
        csv: file of the rows.
    """

    root: Path
    out: Path
    csv: Path

    @classmethod
    def of(cls, suite: Suite, out: str | Path | None = None, root: str | Path | None = None) -> Place:
        """`out` and `root` where they are given, else the environment's and the suite's."""
        folder = Path(out) if out is not None else Path("runs") / suite.name
        data = Path(root or os.environ.get(ROOT) or suite.root).resolve()
        # A suite that names a CSV means its own runs; a folder that was asked for keeps everything together.
        csv = suite.csv if suite.csv is not None and out is None else folder / "results.csv"
        return cls(data, folder, csv)


def missing(suite: Suite, pairs: Iterable[str], place: Place) -> list[str]:
    """One message for each part of the data of `pairs` that is not there: what, from where, to where."""
    messages = []
    for name in dict.fromkeys(need for pair in pairs for need in suite.pairs[pair].needs):
        need = suite.needs[name]
        absent = [path for path in need.paths if not (place.root / path).exists()]
        if absent:
            where = ", ".join(str(place.root / path) for path in absent)
            messages.append(
                f"{need.what} is missing: get it from {need.url} (licence: {need.licence}) and put it where these "
                f"are found: {where}"
            )
    for pair in pairs:
        for part in ("source", "target", "source_test", "target_test"):
            data: DataConfig | None = getattr(suite.pairs[pair], part)
            if data is not None and not suite.pairs[pair].needs and not (place.root / data.path).exists():
                messages.append(f"{pair}: its {part} is not at {place.root / data.path}")
    return messages


def available(suite: Suite, pairs: Iterable[str], place: Place) -> tuple[list[str], list[str]]:
    """(the pairs to run, what is missing for the others). A suite with a fallback does with what is there."""
    wanted = [pair for pair in pairs if not suite.pairs[pair].fallback]
    spare = [pair for pair in pairs if suite.pairs[pair].fallback]
    absent = missing(suite, wanted, place)
    there = [pair for pair in wanted if not missing(suite, [pair], place)]
    if there or not spare:
        return there, absent
    return spare, absent


@dataclass(frozen=True)
class Sets:
    """The data sets of a pair, found."""

    source: DataConfig
    target: DataConfig
    source_test: DataConfig | None
    target_test: DataConfig


def sets(pair: Pair, place: Place) -> Sets:
    """Where the data of a pair is; generated scenes need not be there yet."""
    if pair.scenes is not None:
        from acclimate.scenes.sets import wanted

        folder = place.out / pair.scenes.out
        clear, clear_test, changed, changed_test = (
            DataConfig(path=folder / name, full=pair.scenes.full) for name, _, _, _ in wanted(pair.scenes)
        )
        return Sets(clear, changed, clear_test, changed_test)
    assert pair.source is not None
    assert pair.target is not None
    assert pair.target_test is not None
    return Sets(
        _below(pair.source, place.root),
        _below(pair.target, place.root),
        _below(pair.source_test, place.root) if pair.source_test is not None else None,
        _below(pair.target_test, place.root),
    )


def _below(data: DataConfig, root: Path) -> DataConfig:
    places = {"path": root / data.path, "images": root / data.images if data.images is not None else None}
    return data.model_copy(update=places)


class Task(Options):
    """One run, and the rows that it gives; complete in itself, so that any process can do it."""

    label: str
    run: Path
    config: Config
    """With its data: `oracle` is the target's labelled training part, `target` a list of images without labels."""
    role: Literal["source"] | Role
    """`source` is the training that methods start from; it gives no row."""
    start: Path | None = None
    """The run of the source training, which must be done before."""
    pair: str
    seed: int
    method: str = ""
    digest: str
    """Of the settings."""
    test_images: int | None = None
    csv: Path

    @classmethod
    def from_json(cls, text: str | bytes) -> Task:
        """The task that `model_dump_json` wrote. Pydantic's own reader takes the word `none` for a path."""
        return cls.model_validate(json.loads(text))


def plan(suite: Suite, place: Place, pairs: Iterable[str], methods: Iterable[str], seeds: Iterable[int]) -> list[Task]:
    """The runs of these pairs, methods and seeds, each source training once and before what starts from it.

    Args:
        suite: what is compared.
        place: where its runs and rows go.
        pairs: names of its pairs.
        methods: names of its methods.
        seeds: one run each.
    """
    tasks: dict[tuple[Path, str, str], Task] = {}
    methods = list(methods)
    for seed in seeds:
        for pair in pairs:
            for method in methods:
                for task in _tasks(suite, place, pair, method, seed):
                    tasks.setdefault((task.run, task.method, task.pair if task.method else ""), task)
    return list(tasks.values())


def _tasks(suite: Suite, place: Place, pair: str, method: str, seed: int) -> Iterator[Task]:
    chosen, domains = suite.pairs[pair], sets(suite.pairs[pair], place)
    role = suite.methods[method].role
    config = configuration(suite, pair, method, seed)
    stated = {name: _stated(getattr(chosen, name)) for name in ("source", "target", "source_test", "target_test")}
    scenes = _stated(chosen.scenes)
    common: dict[str, Any] = {"pair": pair, "seed": seed, "csv": place.csv, "test_images": suite.test_images}
    data = {"source": domains.source, "source_test": domains.source_test, "target_test": domains.target_test}
    start: Path | None = None
    if role == "oracle":
        # A ceiling that any pair with this target shares.
        own = digest(role, _essence(config), stated["target"], scenes)
        run = place.out / f"{_slug(domains.target.path.stem)}-{_slug(method)}-{own[:8]}-seed{seed}"
        config = config.model_copy(update={**data, "oracle": domains.target})
    else:
        first = source_configuration(suite, pair, method, seed)
        own = digest("source", _essence(first), stated["source"], scenes)
        start = place.out / f"{_slug(domains.source.path.stem)}-source-{own[:8]}-seed{seed}"
        yield Task(
            label=f"{pair}, source training {own[:8]}, seed {seed}",
            run=start,
            config=first.model_copy(update={"source": domains.source}),
            role="source",
            digest=own,
            **common,
        )
        own = digest(role, _essence(config), _essence(first), stated["source"], stated["target"], scenes)
        run = place.out / f"{_slug(pair)}-{_slug(method)}-{own[:8]}-seed{seed}"
        images = image_list(place, pair, "source" if role == "source-only" else "target")
        config = config.model_copy(update={**data, "target": images})
    yield Task(
        label=f"{pair}, {method}, seed {seed}", run=run, config=config, role=role, start=start, method=method,
        digest=digest(own, stated, suite.test_images), **common,
    )  # fmt: skip


def image_list(place: Place, pair: str, domain: Literal["source", "target"]) -> Path:
    """The file that lists a domain's training images: what an engineer would have as a folder."""
    return place.out / "images" / f"{_slug(pair)}-{domain}.txt"


def _essence(config: Config) -> dict[str, Any]:
    """What determines a result, as far as it differs from the defaults; an option that a later version adds, and that
    nobody set, makes no other settings of old ones."""
    values = config.model_dump(mode="json", include=set(Sections.model_fields), exclude_defaults=True)
    for section in ("train", "schedule"):
        for key in ("workers", "cache_mb", "log_every"):
            values.get(section, {}).pop(key, None)
    return values


def _stated(part: Options | None) -> dict[str, Any] | None:
    return part.model_dump(mode="json", exclude_defaults=True) if part is not None else None


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-")
