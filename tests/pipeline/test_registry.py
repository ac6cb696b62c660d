from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from onnxslim.errors import UsageError
from onnxslim.pipeline import registry
from onnxslim.records import Fidelity

GOOD = """
from dataclasses import dataclass
from typing import ClassVar
from onnxslim import Fidelity, Pass, PassResult, option

@dataclass(frozen=True)
class FuseMine(Pass):
    '''Fuse what is mine.

    More about it.
    '''
    name: ClassVar[str] = "fuse-mine"
    fidelity: ClassVar[Fidelity] = Fidelity.EXACT
    depth: int = option(1, help="how deep")

    def run(self, graph, context):
        return PassResult()
"""

LATE = "from __future__ import annotations\n" + GOOD

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put distributions with pass entry points onto the path, as pip would."""
    monkeypatch.syspath_prepend(tmp_path)
    modules: list[str] = []

    def install(distribution: str, passes: dict[str, str], modules_: dict[str, str]) -> None:
        info = tmp_path / f"{distribution.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n"
        )
        lines = "\n".join(f"{name} = {target}" for name, target in passes.items())
        (info / "entry_points.txt").write_text(f"[onnxslim.passes]\n{lines}\n")
        for module, source in modules_.items():
            (tmp_path / f"{module}.py").write_text(source)
            modules.append(module)
        importlib.invalidate_caches()
        registry._entries.cache_clear()
        registry._load.cache_clear()

    yield install
    for module in modules:
        sys.modules.pop(module, None)
    registry._entries.cache_clear()
    registry._load.cache_clear()


def test_built_in_pass_is_found_by_name() -> None:
    owner = registry.get("eliminate-identity")
    assert owner.name == "eliminate-identity"
    assert owner.__module__ == "onnxslim.passes.eliminate_identity"
    assert "eliminate-identity" in registry.names()


def test_only_the_module_that_is_asked_for_is_imported() -> None:
    code = (
        "import sys; from onnxslim.pipeline import registry; registry.get('eliminate-identity');"
        "print(sorted(m for m in sys.modules if m.startswith('onnxslim.passes.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['onnxslim.passes.eliminate_identity']"


def test_unknown_name_gets_the_closest_one() -> None:
    with pytest.raises(UsageError, match="Did you mean `eliminate-identity`"):
        registry.get("EliminateIdentity")


def test_every_built_in_pass_can_be_described() -> None:
    described = {found.name: found for found in registry.describe()}
    assert [found.problem for found in described.values() if found.problem] == []
    assert all(found.summary for found in described.values())
    assert described["simplify"].is_preset
    assert described["eliminate-identity"].fidelity is Fidelity.EXACT


def test_other_distribution_adds_a_pass(install: Install) -> None:
    install("their-passes", {"fuse-mine": "their_mine:FuseMine"}, {"their_mine": GOOD})
    assert "fuse-mine" in registry.names()
    assert str(registry.get("fuse-mine")(depth=2)) == "fuse-mine:depth=2"  # type: ignore[call-arg]
    (found,) = [item for item in registry.describe() if item.name == "fuse-mine"]
    assert found.owner == "the distribution `their-passes 1.2`"
    assert found.summary == "Fuse what is mine."


def test_name_claimed_twice_names_both_owners(install: Install) -> None:
    install("their-passes", {"simplify": "their_mine:FuseMine"}, {"their_mine": GOOD})
    with pytest.raises(UsageError) as caught:
        registry.get("simplify")
    assert "onnxslim itself" in str(caught.value)
    assert "`their-passes 1.2`" in str(caught.value)
    assert registry.get("eliminate-identity")


def test_name_claimed_by_two_plugins_names_both(install: Install) -> None:
    install("passes-a", {"fuse-mine": "their_mine:FuseMine"}, {"their_mine": GOOD})
    install("passes-b", {"fuse-mine": "their_mine2:FuseMine"}, {"their_mine2": GOOD})
    with pytest.raises(UsageError, match=r"passes-[ab] 1\.2.* and .*passes-[ab] 1\.2"):
        registry.get("fuse-mine")


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("raise RuntimeError('boom')", "RuntimeError: boom"),
        ("import a_module_that_is_not_there", "ModuleNotFoundError"),
        ("x = 1", "AttributeError"),
        ("FuseMine = 3", "is not a subclass of `Pass`"),
        (GOOD.replace("frozen=True", "frozen=False").replace("(Pass)", ""), "not a subclass"),
        (GOOD.replace("@dataclass(frozen=True)", ""), "is not a frozen dataclass"),
        (GOOD.replace('"fuse-mine"', '"fuse-yours"'), "calls itself `fuse-yours`"),
        (GOOD.replace("= Fidelity.EXACT", "= 'exact'"), "does not declare its `fidelity`"),
        (GOOD.replace("option(1, help", "int(1) # "), "the field `depth`"),
        (GOOD.replace("depth: int", "depth: dict"), "declares an option wrongly"),
        (LATE.replace("depth: int", "depth: Nowhere"), "declares an option wrongly"),
    ],
)
def test_broken_plugin_is_one_sentence_and_breaks_nothing_else(
    install: Install, source: str, part: str
) -> None:
    install("their-passes", {"fuse-mine": "their_mine:FuseMine"}, {"their_mine": source})
    with pytest.raises(UsageError) as caught:
        registry.get("fuse-mine")
    message = str(caught.value)
    assert part in message
    assert "`their-passes 1.2`" in message
    assert "\n" not in message
    assert registry.get("eliminate-identity")
    (found,) = [item for item in registry.describe() if item.name == "fuse-mine"]
    assert found.problem == message


def test_name_that_is_not_kebab_case_is_refused(install: Install) -> None:
    source = GOOD.replace('"fuse-mine"', '"Fuse_Mine"')
    install("their-passes", {"Fuse_Mine": "their_mine:FuseMine"}, {"their_mine": source})
    with pytest.raises(UsageError, match="kebab case"):
        registry.get("Fuse_Mine")
